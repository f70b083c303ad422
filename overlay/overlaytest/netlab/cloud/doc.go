// Package cloud is a small internet in user space: it carries IPv4 packets
// between interfaces of network namespaces, and delays and loses them, which is
// what netem would do in kernels that have it.
//
//	namespace a                                   namespace b
//	  eth0 (tun) ──► collect ──► lane a→b ──► eth0 (tun)
//	                  who is it for?  loss, then a queue in which
//	                                  a packet waits until it is due
//
// Each pair of interfaces has a lane for each direction. Packets stay in order
// within a lane; lanes know nothing of each other. There is no limit of
// bandwidth but what the machine can do, and a lane holds so many packets that
// only a sender without any congestion control loses some to its end.
package cloud
