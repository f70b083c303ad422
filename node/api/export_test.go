package api

// Access shows the access table to tests.
func Access(procedure string) (string, bool) {
	c, ok := access(procedure)
	return c.String(), ok
}
