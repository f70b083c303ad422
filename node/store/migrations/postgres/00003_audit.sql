-- +goose Up

-- The audit log: entry idx is leaf idx of a Merkle tree. hashes are those of the
-- perfect subtrees that the entry completes, 32 bytes each, from its leaf upward.
-- digest and size are of the payload, which retention removes; at is in
-- nanoseconds since 1970. Rows are added in the order of idx and never removed;
-- the primary key refuses a second entry in the same place.
CREATE TABLE audit_entries (
	owner     BIGINT NOT NULL,
	idx       BIGINT NOT NULL,
	at        BIGINT NOT NULL,
	kind      TEXT   COLLATE "C" NOT NULL,
	direction TEXT   NOT NULL,
	agent     TEXT   NOT NULL,
	session   TEXT   COLLATE "C" NOT NULL,
	ref       TEXT   COLLATE "C" NOT NULL,
	note      TEXT   NOT NULL,
	digest    BYTEA  NOT NULL,
	size      BIGINT NOT NULL,
	hashes    BYTEA  NOT NULL,
	payload   BYTEA,
	PRIMARY KEY (owner, idx)
);

CREATE INDEX audit_by_session ON audit_entries (owner, session, idx);
CREATE INDEX audit_by_ref ON audit_entries (owner, ref, idx);
CREATE INDEX audit_due ON audit_entries (owner, at) WHERE payload IS NOT NULL;

-- Checkpoints of the log that its agent signed, as it gave them to others.
CREATE TABLE audit_checkpoints (
	owner BIGINT NOT NULL,
	size  BIGINT NOT NULL,
	at    BIGINT NOT NULL,
	text  BYTEA  NOT NULL,
	PRIMARY KEY (owner, size, at)
);
