-- +goose Up

-- Requests for proposals that an agent posted or received. Times are in milliseconds
-- since 1970. done is 1 once nothing can follow any more.
CREATE TABLE market_requests (
	owner    INTEGER NOT NULL,
	id       TEXT    NOT NULL,
	sent     INTEGER NOT NULL,
	created  INTEGER NOT NULL,
	done     INTEGER NOT NULL,
	data     BLOB    NOT NULL,
	PRIMARY KEY (owner, id)
);

CREATE INDEX market_requests_by_time ON market_requests (owner, done, created);

-- What is negotiated under them, with one seller each. contract is empty until there
-- is one.
CREATE TABLE market_negotiations (
	owner    INTEGER NOT NULL,
	id       TEXT    NOT NULL,
	request  TEXT    NOT NULL,
	contract TEXT    NOT NULL,
	created  INTEGER NOT NULL,
	done     INTEGER NOT NULL,
	data     BLOB    NOT NULL,
	PRIMARY KEY (owner, id)
);

CREATE INDEX market_negotiations_by_request ON market_negotiations (owner, request);
CREATE INDEX market_negotiations_by_contract ON market_negotiations (owner, contract);
CREATE INDEX market_negotiations_by_time ON market_negotiations (owner, done, created);

-- Calls made under a contract: one unit each. key is the call's idempotency key.
CREATE TABLE market_uses (
	owner    INTEGER NOT NULL,
	contract TEXT    NOT NULL,
	key      BLOB    NOT NULL,
	PRIMARY KEY (owner, contract, key)
);
