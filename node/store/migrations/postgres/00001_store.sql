-- +goose Up

-- The nodes whose data is here. batch is the number of the last transaction of
-- the node: it tells a writer that lost its connection whether its COMMIT came
-- through, and one that another process has taken over.
CREATE TABLE owners (
	id    BIGINT PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
	agent TEXT   NOT NULL UNIQUE,
	batch BIGINT NOT NULL
);

CREATE TABLE sessions (
	owner   BIGINT NOT NULL,
	session BYTEA  NOT NULL,
	data    BYTEA,
	PRIMARY KEY (owner, session)
);

-- What must outlive the rows that it was counted from: the highest sequence
-- that the outbox ever gave (of rows since pruned), the highest cursor of the
-- inbox, the floor of the idempotency window.
CREATE TABLE counters (
	owner   BIGINT NOT NULL,
	session BYTEA  NOT NULL,
	last    BIGINT NOT NULL DEFAULT 0,
	cursor  BIGINT NOT NULL DEFAULT 0,
	floor   BIGINT NOT NULL DEFAULT 0,
	PRIMARY KEY (owner, session)
);

-- outcome is NULL while a message is pending; message and body are NULL after.
-- settled is the time of the outcome in nanoseconds since 1970.
CREATE TABLE outbox (
	owner    BIGINT NOT NULL,
	session  BYTEA  NOT NULL,
	sequence BIGINT NOT NULL,
	key      BYTEA  NOT NULL,
	message  BYTEA,
	settled  BIGINT,
	outcome  BYTEA,
	body     BYTEA,
	PRIMARY KEY (owner, session, sequence),
	UNIQUE (owner, session, key)
);

CREATE TABLE inbox (
	owner    BIGINT NOT NULL,
	session  BYTEA  NOT NULL,
	sequence BIGINT NOT NULL,
	key      BYTEA  NOT NULL,
	message  BYTEA  NOT NULL,
	body     BYTEA,
	PRIMARY KEY (owner, session, sequence)
);

CREATE TABLE finished (
	owner    BIGINT NOT NULL,
	session  BYTEA  NOT NULL,
	sequence BIGINT NOT NULL,
	outcome  BYTEA  NOT NULL,
	PRIMARY KEY (owner, session, sequence)
);

CREATE TABLE documents (
	owner  BIGINT NOT NULL,
	bucket BYTEA  NOT NULL,
	key    BYTEA  NOT NULL,
	value  BYTEA,
	PRIMARY KEY (owner, bucket, key)
);
