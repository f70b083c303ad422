-- +goose Up

-- The audit log: entry idx is leaf idx of a Merkle tree. hashes are those of the
-- perfect subtrees that the entry completes, 32 bytes each, from its leaf upward.
-- digest and size are of the payload, which retention removes; at is in
-- nanoseconds since 1970. Rows are added in the order of idx and never removed;
-- the primary key refuses a second entry in the same place.
CREATE TABLE audit_entries (
	owner     INTEGER NOT NULL,
	idx       INTEGER NOT NULL,
	at        INTEGER NOT NULL,
	kind      TEXT    NOT NULL,
	direction TEXT    NOT NULL,
	agent     TEXT    NOT NULL,
	session   TEXT    NOT NULL,
	ref       TEXT    NOT NULL,
	note      TEXT    NOT NULL,
	digest    BLOB    NOT NULL,
	size      INTEGER NOT NULL,
	hashes    BLOB    NOT NULL,
	payload   BLOB,
	PRIMARY KEY (owner, idx)
);

CREATE INDEX audit_by_session ON audit_entries (owner, session, idx);
CREATE INDEX audit_by_ref ON audit_entries (owner, ref, idx);
CREATE INDEX audit_due ON audit_entries (owner, at) WHERE payload IS NOT NULL;

-- Checkpoints of the log that its agent signed, as it gave them to others.
CREATE TABLE audit_checkpoints (
	owner INTEGER NOT NULL,
	size  INTEGER NOT NULL,
	at    INTEGER NOT NULL,
	text  BLOB    NOT NULL,
	PRIMARY KEY (owner, size, at)
);
