// Package topic carries broadcasts within scopes of a realm, by GossipSub
// (go-libp2p-pubsub; gossipsub v1.1 and later of the libp2p specifications).
//
//	topic    /openmesh/<realm>/cap/<capability or prefix of capabilities>
//	message  hops (1) | Ed25519 signature (64) | body, at most 64 KiB in all
//	body     protobuf openmesh.topic.v1.Broadcast: version, topic, certificate of
//	         the origin, payload, issued, expires, max_hops
//	signed   "openmesh/topic/1" 0x00 body, by the origin's host key
//	id       SHA-256(topic 0x00 signature body): all but the hops
//
// GossipSub's own signatures are off. What a receiver does with a message that it
// has not seen:
//
//	lie: shape, signature, certificate, other topic  rejected; costs the sender score
//	expired, from the future, superseded key         ignored
//	seen before, as long as it is valid              ignored
//	origin said too much on the topic                ignored; costs score if the origin itself sent it
//	else                                             delivered; forwarded with hops - 1 if hops > 1
//
// Hops are set to what the origin allows at most if they are more. They keep
// honest nodes from carrying a message too far, and do not bind others: whoever
// forwards can lower them.
//
// # Who forwards
//
// In GossipSub only those who are in a topic forward it, but agents are often
// connected to nothing but backbone nodes. So these, and relays, join the topics
// that connected agents are in, up to [Limits].Relayed, those with the most
// listeners first, and leave within [sweep] of the last of them. An agent that
// publishes joins the topic for a while, so that its backbone node does. Relays
// know each other by a protocol that they list (/openmesh/<realm>/topic-relay/1.0.0)
// and do not count each other as listeners: two of them would keep each other in
// a topic for ever. It follows that relays which have agents in a topic must be
// connected to each other, as backbone nodes are; further apart, gossip does not
// pass. It is a faster way to be heard, never the only one: those who publish also
// ask the directory.
//
// # Delivery
//
// Best effort: who is away, or joins later, does not hear what was said; under
// load GossipSub drops messages without a word.
package topic
