// Package delivery is what goes with a session's messages so that the contract's
// promise about them is kept, even over the end of a process: their form, the
// acknowledgement, the terms, and the [Store] that both ends need.
//
// Each direction has an outbox at its sender and an inbox at its receiver, see
// the packages of these names. Below them is a transport of frames in which each
// arrives once, in any order, until the session is resumed because either process
// began anew or a frame was lost. Then both are told to resume before the first
// frame that follows, and none from before arrives any more.
//
// What the promises mean, in the face of a crash of either side:
//
//	at-most-once   in memory only; transmitted once; failed unless it is known
//	               to have arrived
//	at-least-once  on the sender's disk before it is accepted, transmitted until
//	               it has an outcome; a handler may see it again after a crash
//	exactly-once   also the handler's outcome is on the receiver's disk before it
//	               is told; a handler sees a message again only if the receiver
//	               ended in between, and then it is marked Redelivered
//
// The receiver drops what it has seen. Its memory is bounded by the floor, which
// goes with every message: the lowest sequence without an outcome at the sender.
// All below it is settled for good.
//
// On the wire a message is
//
//	length  uvarint  of the header; at most 8 KiB
//	header  …        deliverypb.Header
//	body    …        to the end of the frame
//
// and an acknowledgement is deliverypb.Ack.
package delivery
