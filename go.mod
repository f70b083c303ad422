module openmesh

go 1.26.0

require (
	connectrpc.com/connect v1.21.1 // local API: gRPC, gRPC-Web and JSON on one port
	github.com/Masterminds/semver/v3 v3.5.0 // version ranges of capabilities
	github.com/bufbuild/protocompile v0.14.1 // compiles .proto files named by capability files
	github.com/cenkalti/backoff/v5 v5.0.3 // retries with exponential backoff and jitter
	github.com/cockroachdb/datadriven v1.0.2 // tests: stories of negotiations
	github.com/goccy/go-yaml v1.19.2 // YAML with positions, for errors with line and column
	github.com/google/go-cmp v0.7.0 // tests: readable differences
	github.com/ipfs/go-cid v0.6.2 // keys of the directory
	github.com/ipfs/go-datastore v0.9.2 // storage interface of kad-dht
	github.com/jackc/pgx/v5 v5.12.0 // PostgreSQL
	github.com/libp2p/go-buffer-pool v0.1.0 // buffers of frames
	github.com/libp2p/go-libp2p v0.51.0 // the substrate: transports, security, relays, hole punching
	github.com/libp2p/go-libp2p-kad-dht v0.42.2 // the directory's DHT; behind an interface of ours
	github.com/libp2p/go-libp2p-kbucket v0.9.0 // distance of keys, as kad-dht measures it
	github.com/libp2p/go-libp2p-pubsub v0.16.0 // GossipSub: broadcasts on topics of the realm
	github.com/libp2p/go-libp2p-record v0.3.1 // validator interface of kad-dht
	github.com/libp2p/go-reuseport v0.4.0 // dials from ports that are listened on
	github.com/marcopolo/simnet v0.0.7 // tests: simulated network in virtual time
	github.com/multiformats/go-base32 v0.1.0 // keys in kad-dht's datastore
	github.com/multiformats/go-multiaddr v0.16.1 // addresses of hosts
	github.com/multiformats/go-multiaddr-dns v0.6.0 // names in addresses of hosts
	github.com/multiformats/go-multibase v0.3.0 // agent ids (did:key)
	github.com/multiformats/go-multihash v0.2.3 // keys of the directory
	github.com/multiformats/go-multistream v0.6.1 // protocol of a stream on a chosen connection
	github.com/nats-io/nats-server/v2 v2.15.2 // node/bench/jetstream: what durable delivery is compared with
	github.com/nats-io/nats.go v1.55.0 // node/bench/jetstream: its client
	github.com/pressly/goose/v3 v3.28.0 // versions of the database
	github.com/prometheus/client_golang v1.25.0 // metrics
	github.com/rogpeppe/go-internal v1.16.0 // lock of the home; tests: scripts of commands
	github.com/santhosh-tekuri/jsonschema/v6 v6.0.3 // JSON Schema 2020-12
	github.com/spf13/cobra v1.10.2 // command line
	github.com/spf13/pflag v1.0.9 // flags, as cobra has them
	go.opentelemetry.io/otel v1.47.0 // traces
	go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc v1.47.0 // traces by OTLP over gRPC
	go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp v1.47.0 // traces by OTLP over HTTP
	go.opentelemetry.io/otel/sdk v1.47.0 // traces
	go.opentelemetry.io/otel/trace v1.47.0 // traces
	go.opentelemetry.io/proto/otlp v1.11.0 // tests: a receiver of traces
	go.uber.org/goleak v1.3.0 // tests: goroutines that should have ended
	go.uber.org/zap v1.28.0 // logs
	go.uber.org/zap/exp v0.3.0 // libp2p's slog output into zap
	golang.org/x/crypto v0.58.0 // Argon2id and ChaCha20-Poly1305, which the standard library does not export
	golang.org/x/mod v0.42.0 // the audit log's tree (sumdb/tlog) and signed notes (sumdb/note)
	golang.org/x/net v0.60.0 // field names of HTTP headers
	golang.org/x/sync v0.24.0 // errgroup, singleflight
	golang.org/x/sys v0.49.0 // tests: network namespaces
	golang.org/x/term v0.47.0 // passphrases without echo; is it a terminal?
	golang.org/x/text v0.43.0 // messages of the JSON Schema library
	golang.org/x/time v0.16.0 // rate limits
	google.golang.org/grpc v1.85.0 // sessions over gRPC, and what bench compares with
	google.golang.org/protobuf v1.36.12 // messages
	modernc.org/sqlite v1.60.1 // SQLite without cgo; newer ones break go mod tidy
	pgregory.net/rapid v1.3.0 // tests: properties
)

require (
	filippo.io/bigmod v0.1.1-0.20260103110540-f8a47775ebe5 // indirect
	filippo.io/keygen v1.0.0 // indirect
	github.com/antithesishq/antithesis-sdk-go v0.8.0-default-no-op // indirect
	github.com/benbjohnson/clock v1.3.5 // indirect
	github.com/beorn7/perks v1.0.1 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/davidlazar/go-crypto v0.0.0-20200604182044-b73af7476f6c // indirect
	github.com/decred/dcrd/dcrec/secp256k1/v4 v4.4.1 // indirect
	github.com/dunglas/httpsfv v1.1.1 // indirect
	github.com/dustin/go-humanize v1.0.1 // indirect
	github.com/filecoin-project/go-clock v0.1.0 // indirect
	github.com/flynn/noise v1.1.0 // indirect
	github.com/go-logr/logr v1.4.4 // indirect
	github.com/go-logr/stdr v1.2.2 // indirect
	github.com/gogo/protobuf v1.3.2 // indirect
	github.com/google/go-tpm v0.9.8 // indirect
	github.com/google/gopacket v1.1.19 // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/gorilla/websocket v1.5.3 // indirect
	github.com/grpc-ecosystem/grpc-gateway/v2 v2.30.0 // indirect
	github.com/hashicorp/golang-lru v1.0.2 // indirect
	github.com/hashicorp/golang-lru/v2 v2.0.7 // indirect
	github.com/huin/goupnp v1.3.0 // indirect
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/ipfs/boxo v0.41.0 // indirect
	github.com/ipfs/go-log/v2 v2.9.2 // indirect
	github.com/ipld/go-ipld-prime v0.24.0 // indirect
	github.com/jackc/pgpassfile v1.0.0 // indirect
	github.com/jackc/pgservicefile v0.0.0-20240606120523-5a60cdf6a761 // indirect
	github.com/jackc/puddle/v2 v2.2.3 // indirect
	github.com/jackpal/go-nat-pmp v1.0.2 // indirect
	github.com/jbenet/go-temp-err-catcher v0.1.0 // indirect
	github.com/klauspost/compress v1.20.3 // indirect
	github.com/klauspost/cpuid/v2 v2.4.0 // indirect
	github.com/koron/go-ssdp v0.9.1 // indirect
	github.com/kylelemons/godebug v1.1.0 // indirect
	github.com/libp2p/go-cidranger v1.1.0 // indirect
	github.com/libp2p/go-flow-metrics v0.3.0 // indirect
	github.com/libp2p/go-libp2p-asn-util v0.4.1 // indirect
	github.com/libp2p/go-libp2p-routing-helpers v0.7.5 // indirect
	github.com/libp2p/go-msgio v0.3.0 // indirect
	github.com/libp2p/go-netroute v0.4.0 // indirect
	github.com/libp2p/go-yamux/v5 v5.1.0 // indirect
	github.com/marten-seemann/tcp v0.0.0-20210406111302-dfbc87cc63fd // indirect
	github.com/mattn/go-isatty v0.0.24 // indirect
	github.com/mfridman/interpolate v0.0.2 // indirect
	github.com/mikioh/tcpinfo v0.0.0-20190314235526-30a79bb1804b // indirect
	github.com/mikioh/tcpopt v0.0.0-20190314235656-172688c1accc // indirect
	github.com/minio/highwayhash v1.0.4 // indirect
	github.com/minio/sha256-simd v1.0.1 // indirect
	github.com/mr-tron/base58 v1.3.0 // indirect
	github.com/multiformats/go-base36 v0.2.0 // indirect
	github.com/multiformats/go-multiaddr-fmt v0.1.0 // indirect
	github.com/multiformats/go-multicodec v0.10.0 // indirect
	github.com/multiformats/go-varint v0.1.0 // indirect
	github.com/munnerz/goautoneg v0.0.0-20191010083416-a7dc8b61c822 // indirect
	github.com/nats-io/jwt/v2 v2.8.2 // indirect
	github.com/nats-io/nkeys v0.4.16 // indirect
	github.com/nats-io/nuid v1.0.1 // indirect
	github.com/ncruces/go-strftime v1.0.0 // indirect
	github.com/pbnjay/memory v0.0.0-20210728143218-7b4eea64cf58 // indirect
	github.com/pion/datachannel v1.5.10 // indirect
	github.com/pion/dtls/v3 v3.1.4 // indirect
	github.com/pion/ice/v4 v4.0.10 // indirect
	github.com/pion/interceptor v0.1.40 // indirect
	github.com/pion/logging v0.2.4 // indirect
	github.com/pion/mdns/v2 v2.0.7 // indirect
	github.com/pion/randutil v0.1.0 // indirect
	github.com/pion/rtcp v1.2.16 // indirect
	github.com/pion/rtp v1.8.19 // indirect
	github.com/pion/sctp v1.8.39 // indirect
	github.com/pion/sdp/v3 v3.0.18 // indirect
	github.com/pion/srtp/v3 v3.0.6 // indirect
	github.com/pion/stun/v3 v3.1.5 // indirect
	github.com/pion/transport/v3 v3.0.7 // indirect
	github.com/pion/transport/v4 v4.0.2 // indirect
	github.com/pion/turn/v4 v4.0.2 // indirect
	github.com/pion/webrtc/v4 v4.1.2 // indirect
	github.com/pmezard/go-difflib v1.0.0 // indirect
	github.com/polydawn/refmt v0.90.0 // indirect
	github.com/prometheus/client_model v0.6.3 // indirect
	github.com/prometheus/common v0.72.0 // indirect
	github.com/prometheus/procfs v0.22.0 // indirect
	github.com/quic-go/qpack v0.6.0 // indirect
	github.com/quic-go/quic-go v0.64.1 // indirect
	github.com/quic-go/webtransport-go v0.13.0 // indirect
	github.com/remyoudompheng/bigfft v0.0.0-20230129092748-24d4a6f8daec // indirect
	github.com/sethvargo/go-retry v0.4.0 // indirect
	github.com/spaolacci/murmur3 v1.1.0 // indirect
	github.com/stretchr/testify v1.12.1 // indirect
	github.com/whyrusleeping/go-keyspace v0.0.0-20160322163242-5b898ac5add1 // indirect
	github.com/wlynxg/anet v0.0.5 // indirect
	go.opentelemetry.io/auto/sdk v1.2.1 // indirect
	go.opentelemetry.io/otel/exporters/otlp/otlptrace v1.47.0 // indirect
	go.opentelemetry.io/otel/log v1.47.0 // indirect
	go.opentelemetry.io/otel/metric v1.47.0 // indirect
	go.uber.org/dig v1.19.0 // indirect
	go.uber.org/fx v1.24.0 // indirect
	go.uber.org/mock v0.6.0 // indirect
	go.uber.org/multierr v1.11.0 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/exp v0.0.0-20260824195058-e88cd73687aa // indirect
	golang.org/x/telemetry v0.0.0-20260924152758-ed294f943157 // indirect
	golang.org/x/tools v0.51.0 // indirect
	gonum.org/v1/gonum v0.17.0 // indirect
	google.golang.org/genproto/googleapis/api v0.0.0-20260928230214-8a89bd6388cc // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260928230214-8a89bd6388cc // indirect
	lukechampine.com/blake3 v1.4.1 // indirect
	modernc.org/libc v1.77.1 // indirect
	modernc.org/mathutil v1.7.1 // indirect
	modernc.org/memory v1.12.1 // indirect
)
