package main

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"openmesh/node/config"
)

func newConfig(p *program) *cobra.Command {
	return p.noun("config", "The configuration",
		newConfigShow(p), newConfigCheck(p),
		newExamples(p, "Print a configuration file that explains every key", func() []byte { return config.Template(nil) }, defaults))
}

// defaults is a configuration file that says what is so without it.
func defaults() []byte {
	said := make(map[string]string)
	for _, k := range config.Keys() {
		if k.Default != "" {
			said[k.Name] = k.Default
		}
	}
	return config.Template(said)
}

// loadConfig reads the configuration of the home, as the daemon would.
func (p *program) loadConfig(flags map[string]string) (home string, cfg *config.Config, err error) {
	if home, err = p.homeDir(); err != nil {
		return "", nil, err
	}
	cfg, err = config.Load(home, p.environ, flags)
	return home, cfg, err
}

func newConfigShow(p *program) *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Print the configuration as the daemon would use it", Args: cobra.NoArgs,
		Long: "Print the configuration as the daemon would use it: defaults, the file and the environment together.\n" +
			"Secrets are masked.",
		RunE: func(*cobra.Command, []string) error {
			_, cfg, err := p.loadConfig(nil)
			if err != nil {
				return err
			}
			if !p.json {
				_, err = p.out.Write(cfg.Render())
				return err
			}
			doc, err := yaml.YAMLToJSON(cfg.Render())
			if err != nil {
				return err
			}
			var line bytes.Buffer
			if err := json.Compact(&line, doc); err != nil {
				return fmt.Errorf("print as JSON: %w", err)
			}
			return p.document(line.Bytes())
		},
	}
}

func newConfigCheck(p *program) *cobra.Command {
	return &cobra.Command{
		Use: "check", Short: "Find what is wrong with the configuration", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			home, cfg, err := p.loadConfig(nil)
			if err != nil {
				return err
			}
			checked := struct {
				OK       bool     `json:"ok"`
				Home     string   `json:"home"`
				Warnings []string `json:"warnings"`
			}{true, home, append([]string{}, cfg.Unbuilt()...)}
			return p.showValue(checked, func(g *page) {
				g.text("ok")
				for _, w := range checked.Warnings {
					g.fields("warn", w)
				}
			})
		},
	}
}
