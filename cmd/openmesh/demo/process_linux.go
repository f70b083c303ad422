package demo

import "syscall"

// attributes keep the terminal's ^C from a child: ending it is the demo's work.
// One that is not to be kept dies with the demo, however that dies.
func attributes(keep bool) *syscall.SysProcAttr {
	if keep {
		return &syscall.SysProcAttr{Setsid: true}
	}
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
