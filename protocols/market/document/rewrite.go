package document

// Rewrite translates an offer from one version of its schema to another, and returns
// the canonical text. Details are lost where the other version has none. Errors:
// wire.InvalidRequest with pointers, wire.NoCommonSchema.
func Rewrite(doc []byte, from, to string) ([]byte, error) {
	if from != to {
		var err error
		if doc, _, err = translations().Translate(doc, from, to); err != nil {
			return nil, err
		}
	}
	return Canonical(doc, MaxDocument)
}
