// Package observe is how people see into a node: logs, metrics, traces and
// alerts. It knows no other part of the node; the node hands its pieces around.
//
//	Logger, RouteLibp2p    zap, sampled; libp2p's slog goes the same way
//	Metrics, Server        Prometheus: own registry; /metrics /healthz /readyz
//	Tracer                 OpenTelemetry by OTLP; W3C Trace Context between nodes
//	Alerts, Evaluate       the thresholds of observability.alert_thresholds
//
// What comes from peers can make none of it grow: a repeated message is
// logged ten times a second at most, labels come from closed lists, and a
// trace context is bounded before it is parsed. Nothing here sets a global,
// save [RouteLibp2p], whose purpose it is.
package observe
