package session

// Protocol returns the version of an application protocol or schema that was
// agreed on in signaling, when the session was set up or last resumed. Not ok
// says that one side does not know the protocol: then nothing was agreed.
func (s *Session) Protocol(name string) (version string, ok bool) {
	for _, p := range s.ends.Load().protocols {
		if p.Name == name {
			return p.Versions[0], true
		}
	}
	return "", false
}
