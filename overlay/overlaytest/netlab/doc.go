// Package netlab gives tests real networks: hosts in Linux network namespaces,
// on a switch of their own, with firewalls that a test opens and closes, and
// the real program running on them.
//
//	          5.0.1.1        5.0.2.1        5.0.3.1
//	lab.Host("backbone")       "a"            "b"      one namespace each
//	             │              │ firewall     │
//	             └──────────────┴──────────────┘       lab's switch: a bridge in
//	                                                   a namespace of its own
//
// A lab has no link to the machine's network, nor to another lab: all labs use
// the same addresses and may run side by side. The addresses are ones that
// libp2p takes for public; those set aside for documentation it does not.
//
// Namespaces have no names on the machine. They are held open by files of the
// test's process, and processes in them die with it, so the kernel removes a
// lab however its test ends.
//
// It needs Linux, root, and the programs ip (iproute2), nft (nftables) and
// nsenter (util-linux). Where these are missing [New] skips the test, or fails
// it if OPENMESH_NETLAB is "require". On other systems the package is empty.
package netlab
