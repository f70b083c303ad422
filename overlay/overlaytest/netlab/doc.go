// Package netlab gives tests real networks: hosts in Linux network namespaces,
// on a switch or a small internet of their own, with firewalls and NAT routers
// that a test changes as it goes, and the real program running on them.
//
//	lab.Router("home", Easy)          lab.Router("office", Symmetric)
//	     .Host("a")                        .Host("b")  .Router("cellar", NoUDP)
//	    192.168.1.2                     192.168.1.2   192.168.1.3
//	         │ firewall                      └──────┬──────┘ │
//	  lan 192.168.1.1                        lan 192.168.1.1 └ lan 192.168.2.1
//	  wan 5.0.1.1  NAT                       wan 5.0.2.1  NAT
//	         │                                      │
//	         └──────────┬───────────────────┬───────┘   lab's switch: a bridge in a
//	                    │                   │           namespace of its own; with
//	                    │ firewall          │           lab.Cloud: user space that
//	                 5.0.3.1             5.0.4.1        delays and loses packets
//	        lab.Host("backbone")     lab.Host("relay")
//
// Each box of a lab is a namespace: a host, a router, the switch. [NewMesh] makes
// a lab with the daemons that most tests want in its middle. What passes a host
// or the wan side of a router can be captured.
//
// A lab has no link to the machine's network, nor to another lab: all labs use
// the same addresses and may run side by side. The public addresses are ones that
// libp2p takes for public; those set aside for documentation it does not.
//
// Namespaces have no names on the machine. They are held open by files of the
// test's process, and processes in them die with it, so the kernel removes a
// lab however its test ends.
//
// It needs Linux, root, and the programs ip (iproute2), nft (nftables) and
// nsenter (util-linux), and minutes: tests that use it are skipped unless the
// environment has OPENMESH_NETLAB=require; then they fail where something is
// missing. On other systems the package is empty.
package netlab
