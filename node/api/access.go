package api

import rpc "openmesh/node/api/openmesh/v1/openmeshv1connect"

// class says how much a procedure can do. It stands in the log beside each call;
// calls of class admin are logged at info, so that the log tells of every change.
type class int

const (
	read  class = iota + 1 // looks
	write                  // acts in the agent's name or changes what it does
	admin                  // changes what this machine runs or who the agent is
)

func (c class) String() string { return [...]string{"unknown", "read", "write", "admin"}[c] }

// access returns the class of a procedure, such as "/openmesh.v1.Node/Id". What
// is not in this table is refused before it is looked at, so a new procedure
// cannot be reached until someone has thought about its class.
func access(procedure string) (class, bool) {
	switch procedure {
	case rpc.NodeIdProcedure, rpc.NodeStatusProcedure, rpc.NodePeersProcedure, rpc.NodeRelaysProcedure, rpc.NodeDoctorProcedure,
		rpc.DirectoryListCapabilitiesProcedure, rpc.DirectoryDiscoverProcedure, rpc.DirectoryResolveProcedure,
		rpc.SessionListProcedure, rpc.SessionShowProcedure, rpc.SessionWatchProcedure, rpc.SessionOutcomeProcedure,
		rpc.MarketListRFPsProcedure, rpc.MarketShowRFPProcedure, rpc.MarketListProposalsProcedure, rpc.MarketShowProposalProcedure,
		rpc.MarketListContractsProcedure, rpc.MarketShowContractProcedure, rpc.MarketExportContractProcedure, rpc.MarketWatchProcedure,
		rpc.MarketListSchemasProcedure, rpc.MarketGetSchemaProcedure,
		rpc.AuditListProcedure, rpc.AuditShowProcedure, rpc.AuditVerifyProcedure, rpc.AuditReplayProcedure, rpc.AuditExportProcedure,
		rpc.KeyStatusProcedure:
		return read, true
	case rpc.NodePingProcedure, rpc.NodeConnectProcedure,
		rpc.SessionOpenProcedure, rpc.SessionCloseProcedure, rpc.SessionCallProcedure, rpc.SessionCallStreamProcedure,
		rpc.SessionSendProcedure, rpc.SessionReceiveProcedure, rpc.SessionPullProcedure, rpc.SessionReplyProcedure,
		rpc.MarketPostRFPProcedure, rpc.MarketCancelRFPProcedure, rpc.MarketProposeProcedure, rpc.MarketCounterProcedure, rpc.MarketAmendProcedure,
		rpc.MarketAcceptProcedure, rpc.MarketRejectProcedure, rpc.MarketWithdrawProcedure, rpc.MarketSettleProcedure, rpc.MarketAddSchemaProcedure,
		rpc.AuditCheckpointProcedure:
		return write, true
	case rpc.DirectoryAddCapabilityProcedure, rpc.DirectoryRemoveCapabilityProcedure: // a handler may be a program
		return admin, true
	}
	return 0, false
}
