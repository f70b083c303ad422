package main

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// release says which program this is.
type release struct {
	Version string `json:"version"`
	Commit  string `json:"commit"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

// thisRelease reads what the Go toolchain wrote into the program: the version
// is that of the source's tag, or "(devel)".
func thisRelease() release {
	r := release{Version: "(devel)", Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return r
	}
	if info.Main.Version != "" {
		r.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			r.Commit = s.Value
		}
	}
	return r
}

func newVersion(p *program) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			r := thisRelease()
			return p.showValue(r, func(g *page) {
				g.text("openmesh %s (%s, %s/%s)", r.Version, r.Go, r.OS, r.Arch)
				if r.Commit != "" {
					g.text("commit %s", r.Commit)
				}
			})
		},
	}
}
