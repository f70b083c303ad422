// Package nearest guesses which word was meant by a misspelled one.
package nearest

// Word returns the candidate that word was probably meant to be: the one
// with the fewest edits, if those are few for its length; or "".
func Word(word string, candidates []string) string {
	best, fewest := "", 1+max(1, min(len(word)/5, 4))
	for _, c := range candidates {
		if d := edits(word, c, fewest); d < fewest {
			best, fewest = c, d
		}
	}
	return best
}

// edits returns the Levenshtein distance of a and b in bytes, or something
// that is at least limit.
func edits(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitute := diagonal
			if a[i] != b[j] {
				substitute++
			}
			diagonal = row[j+1]
			row[j+1] = min(substitute, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
