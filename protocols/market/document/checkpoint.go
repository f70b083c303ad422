package document

import (
	"crypto/sha256"
	"encoding/base64"
	"strconv"
	"strings"

	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// Checkpoints are states of both audit logs, so that neither side can rewrite its
// own without contradicting the contract. A side that sent none has none.
type Checkpoints struct {
	Buyer  *Checkpoint `json:"buyer,omitempty"`
	Seller *Checkpoint `json:"seller,omitempty"`
}

// Checkpoint is a state of an audit log.
type Checkpoint struct {
	Size int64 `json:"size"` // entries
	Root Hash  `json:"root"` // Merkle tree hash
	Text Hash  `json:"text"` // SHA-256 of the signed checkpoint, as it came with the move
}

// NewCheckpoint describes the signed checkpoint in sent, which is the Checkpoint
// of a move.
func NewCheckpoint(size int64, root Hash, sent []byte) *Checkpoint {
	return &Checkpoint{Size: size, Root: root, Text: sha256.Sum256(sent)}
}

// maxEntries bounds the size of a log in a contract: what every JSON parser can count.
const maxEntries = 1<<53 - 1

// ReadCheckpoint describes the signed checkpoint of an agent's log, by its first three
// lines (https://c2sp.org/tlog-checkpoint). Its signature is for who keeps such logs.
// The error is wire.Malformed.
//
//	openmesh/audit/did:key:z6Mk…       the log: whose it is
//	1042                               entries
//	CsUYapGGPo4dkMgIAUqom/Xajj7h2fB…   root hash, base64
func ReadCheckpoint(agent identity.AgentID, sent []byte) (*Checkpoint, error) {
	lines := strings.SplitN(string(sent), "\n", 4)
	if len(lines) < 4 || lines[0] != "openmesh/audit/"+string(agent) {
		return nil, wire.Errorf(wire.Malformed, "checkpoint is not of the audit log of %s", agent)
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || size > maxEntries || strconv.FormatInt(size, 10) != lines[1] {
		return nil, wire.Errorf(wire.Malformed, "checkpoint is of %.20q entries", lines[1])
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(root) != sha256.Size || base64.StdEncoding.EncodeToString(root) != lines[2] {
		return nil, wire.Errorf(wire.Malformed, "checkpoint has the root hash %.50q", lines[2])
	}
	return NewCheckpoint(size, Hash(root), sent), nil
}
