//go:build !unix

// Package postgrestest gives tests a PostgreSQL server, on systems that have users to
// run it.
package postgrestest
