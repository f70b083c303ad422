# One static program and nothing else: no shell, no package manager, no root.
#
#   docker build -t openmesh .
#   docker run -d --name mesh -v mesh:/home/openmesh -p 4747:4747 -p 4747:4747/udp openmesh
#   docker exec mesh /openmesh status

FROM golang:1.26-bookworm AS build
# Where modules come from, if not from where Go looks by itself: --build-arg GOPROXY=…
ARG GOPROXY
ARG GOSUMDB
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o /out/openmesh ./cmd/openmesh
# Folders of the user: a new volume takes its owner from what it covers.
WORKDIR /owned/mesh
WORKDIR /owned/home/openmesh

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/openmesh /openmesh
COPY --from=build --chown=10001:10001 /owned /
USER 10001:10001
ENV HOME=/home/openmesh OPENMESH_HOME=/home/openmesh
VOLUME /home/openmesh
# 4747: peers, TCP and QUIC; 4748: peers, WebSocket and WebRTC; 9090: metrics, once observability.metrics_host lets others in.
EXPOSE 4747/tcp 4747/udp 4748/tcp 4748/udp 9090/tcp
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s CMD ["/openmesh", "status"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/openmesh"]
CMD ["run", "--init"]
