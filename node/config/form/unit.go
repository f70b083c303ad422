package form

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"time"
)

// Units of sizes, in bytes, and of durations.
const (
	KiB = 1 << 10
	MiB = 1 << 20
	GiB = 1 << 30
	Day = 24 * time.Hour
)

// parseDuration reads Go's durations, and days: "30s", "1h30m", "14d", "1d12h".
func parseDuration(s string) (time.Duration, error) {
	days, rest, found := strings.Cut(s, "d")
	if !found {
		days, rest = "0", s
	}
	n, err := strconv.ParseUint(days, 10, 16)
	if err != nil {
		return 0, errors.New("is not a duration (such as 30s, 5m, 12h or 14d)")
	}
	sum := time.Duration(n) * Day
	if found && rest == "" {
		return sum, nil
	}
	if _, err := strconv.ParseFloat(rest, 64); err == nil && rest != "0" {
		return 0, errors.New("has no unit (such as 30s, 5m, 12h or 14d)")
	}
	d, err := time.ParseDuration(rest)
	if err != nil || found && d < 0 {
		return 0, errors.New("is not a duration (such as 30s, 5m, 12h or 14d)")
	}
	if d > math.MaxInt64-sum {
		return 0, errors.New("is out of range")
	}
	return sum + d, nil
}

// formatDuration is the inverse of parseDuration, as people write it: days
// above two, and no units that are zero.
func formatDuration(d time.Duration) string {
	if d > 2*Day && d%Day == 0 {
		return strconv.Itoa(int(d/Day)) + "d"
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// parseSize reads bytes: "4096", "4KiB", "64MiB", "1GiB".
func parseSize(s string) (int, error) {
	digits, unit := strings.TrimRight(s, "KMGiB"), 1
	switch s[len(digits):] {
	case "", "B":
	case "KiB":
		unit = KiB
	case "MiB":
		unit = MiB
	case "GiB":
		unit = GiB
	default:
		digits = ""
	}
	n, err := strconv.ParseUint(digits, 10, strconv.IntSize-1)
	if errors.Is(err, strconv.ErrRange) || n > math.MaxInt/uint64(unit) {
		return 0, errors.New("is out of range")
	}
	if err != nil {
		return 0, errors.New("is not a size (such as 4096, 32KiB, 4MiB or 1GiB)")
	}
	return int(n) * unit, nil
}

// FormatSize is the inverse of parseSize, in the largest whole unit.
func FormatSize(n int) string {
	switch {
	case n == 0:
		return "0"
	case n%GiB == 0:
		return strconv.Itoa(n/GiB) + "GiB"
	case n%MiB == 0:
		return strconv.Itoa(n/MiB) + "MiB"
	case n%KiB == 0:
		return strconv.Itoa(n/KiB) + "KiB"
	}
	return strconv.Itoa(n)
}
