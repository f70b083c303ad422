//go:build !linux

package demo

import "syscall"

// attributes keep the terminal's ^C from a child: ending it is the demo's work.
// Here the system cannot end it when the demo is killed.
func attributes(keep bool) *syscall.SysProcAttr {
	if keep {
		return &syscall.SysProcAttr{Setsid: true}
	}
	return &syscall.SysProcAttr{Setpgid: true}
}
