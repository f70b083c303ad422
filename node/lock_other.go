//go:build !unix

package node

// lockHome does nothing here: the local API's socket keeps a second daemon out.
func lockHome(string) (unlock func() error, err error) { return func() error { return nil }, nil }
