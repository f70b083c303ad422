package document

import (
	_ "embed"
	"strings"
)

//go:embed schemas/currencies.txt
var currencies string

// IsCurrency reports whether code is an alphabetic code of ISO 4217 that money is
// counted in now. The codes, and where they are from, are in schemas/currencies.txt.
func IsCurrency(code string) bool {
	for line := range strings.Lines(currencies) {
		if !strings.HasPrefix(line, "#") && len(code) == 3 && strings.Contains(" "+strings.TrimSpace(line)+" ", " "+code+" ") {
			return true
		}
	}
	return false
}
