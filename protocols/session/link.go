package session

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	pool "github.com/libp2p/go-buffer-pool"

	"openmesh/protocols/session/seal"
)

// link makes one lasting path for frames out of channels that come and go. A
// reliable frame is kept until the peer has said that it has it, and is sent
// again over the next channel if the one it went over is lost; the window against
// replays drops what arrives twice. So whatever stands on it loses nothing as
// long as both processes live.
//
//	send ──▶ [ kept: 7 8 9 … ] ──▶ active channel ──▶ peer
//	               ▲ Received{newest, missing} ◀────────┘ every 32 frames or second
type link struct {
	mu       sync.Mutex
	sequence uint64  // of the last frame sent
	kept     []frame // ascending by sequence; released ones in front are cut off
	bytes    int     // of the plaintexts kept
	channels []*channel
	active   *channel // where this side sends; nil if there is none
	last     uint32   // id of the newest channel
	closed   bool
	up       chan struct{} // closed when there are keys; nil if nobody waits
	free     chan struct{} // closed when there may be room; nil if nobody waits

	// The keys are changed with mu held. They stand for one life of the session on
	// both sides: what belongs to it is sent under its keys or not at all. Nil: the
	// secret was lost in a restart.
	keys atomic.Pointer[seal.Keys]

	current atomic.Pointer[channel] // active, for those who only look
	owed    atomic.Int32            // reliable frames received since the last Received
	owedBig atomic.Int64            // and their bytes
}

// frame is a reliable frame that the peer is not known to have.
type frame struct {
	sequence uint64
	typ      seal.Type
	plain    []byte // nil: released
	channel  uint32 // that it was sent over last; 0: none that the peer had taken
	exposed  bool   // it was sent over another one before, so the peer may have it
	at       int64  // when, ns since the epoch
}

const (
	// maxKept bounds the frames and bytes that wait for the peer's Received: it
	// stays below the window against replays, so that a frame sent again is never
	// too old.
	maxKept      = seal.Window / 2
	maxKeptBytes = 16 << 20

	// A Received is due after so many frames or bytes.
	owedFrames = 32
	owedBytes  = 256 << 10

	maxGaps     = 64 // in a Received
	maxChannels = 4  // of one session
)

func newLink(keys *seal.Keys) *link {
	l := new(link)
	l.keys.Store(keys)
	return l
}

// full reports whether another frame has to wait; l.mu is held.
func (l *link) full() bool { return len(l.kept) >= maxKept || l.bytes >= maxKeptBytes }

var (
	errFull  = errors.New("too much is on its way")
	errEnded = errors.New("the keys are gone")
)

// send seals plain under keys and sends it over the active channel. The error is
// errFull if too much is kept, and plain the caller's still; else its buffer is the
// link's. It is errEnded if the link is closed or has other keys. The channel is
// the one that failed, if one did.
func (l *link) send(keys *seal.Keys, t seal.Type, plain []byte, company bool) (size int, failed *channel, err error) {
	reliable := t.Reliable()
	l.mu.Lock()
	if !l.has(keys) {
		l.mu.Unlock()
		pool.Put(plain)
		return 0, nil, errEnded
	}
	if reliable && l.full() {
		l.mu.Unlock()
		return 0, nil, errFull
	}
	l.sequence++
	ch := l.active
	var sealed []byte
	if ch != nil {
		sealed = l.seal(t, l.sequence, plain)
	}
	if reliable {
		l.keep(t, plain, ch)
	} else {
		pool.Put(plain)
	}
	l.mu.Unlock()
	if ch == nil {
		return 0, nil, nil
	}
	size = len(sealed)
	if ch.write(sealed, company) != nil {
		failed = ch
	}
	pool.Put(sealed)
	return size, failed, nil
}

// has reports whether the link sends under keys; l.mu is held.
func (l *link) has(keys *seal.Keys) bool { return !l.closed && keys != nil && l.keys.Load() == keys }

// vacancy returns a channel that is closed once there may be room, or there is
// nothing to wait for.
func (l *link) vacancy() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.full() || l.closed {
		now := make(chan struct{})
		close(now)
		return now
	}
	if l.free == nil {
		l.free = make(chan struct{})
	}
	return l.free
}

// vacate lets those look again who wait for room; l.mu is held.
func (l *link) vacate() {
	if l.free != nil {
		close(l.free)
		l.free = nil
	}
}

// tell is send for frames that speak of a channel: it goes over ch, is not kept
// and never waits.
func (l *link) tell(ch *channel, t seal.Type, plain []byte) {
	l.mu.Lock()
	if l.keys.Load() == nil {
		l.mu.Unlock()
		return
	}
	l.sequence++
	ch.told = l.sequence
	sealed := l.seal(t, l.sequence, plain)
	l.mu.Unlock()
	ch.post(sealed, maxQueue)
	pool.Put(sealed)
}

// seal returns a frame with its length in front, in a buffer of the pool; l.mu is
// held.
func (l *link) seal(t seal.Type, sequence uint64, plain []byte) []byte {
	n := len(plain) + seal.Overhead
	buf := binary.AppendUvarint(pool.Get(maxPrefix + n)[:0], uint64(n))
	return l.keys.Load().Seal(buf, t, sequence, plain)
}

const maxPrefix = 5 // of a uvarint length up to 32 bits

func (l *link) keep(t seal.Type, plain []byte, ch *channel) {
	f := frame{sequence: l.sequence, typ: t, plain: plain}
	if plain == nil {
		f.plain = []byte{}
	}
	if ch != nil {
		f.channel, f.at = ch.id, time.Now().UnixNano()
	}
	l.kept = append(l.kept, f)
	l.bytes += len(plain)
}

// received takes the peer's word, which came over a channel, of what it has.
func (l *link) received(over *channel, newest uint64, missing []seal.Range) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Contains(l.channels, over) {
		return // it speaks of frames under keys that are gone, or is late
	}
	for _, ch := range l.channels {
		if ch.told <= newest && !slices.ContainsFunc(missing, func(r seal.Range) bool { return r.First <= ch.told && ch.told <= r.Last }) {
			ch.has = max(ch.has, ch.told)
		}
	}
	gap := len(missing) - 1 // gaps come newest first
	for i := range l.kept {
		f := &l.kept[i]
		if f.sequence > newest {
			break
		}
		for gap >= 0 && missing[gap].Last < f.sequence {
			gap--
		}
		if f.plain == nil || gap >= 0 && missing[gap].First <= f.sequence {
			continue
		}
		for _, ch := range l.channels {
			if ch.id == f.channel {
				ch.has = max(ch.has, f.sequence)
			}
		}
		l.release(f)
	}
	l.cut()
}

func (l *link) release(f *frame) {
	l.bytes -= len(f.plain)
	pool.Put(f.plain)
	f.plain = nil
}

// cut drops the released frames in front; l.mu is held.
func (l *link) cut() {
	n := 0
	for n < len(l.kept) && l.kept[n].plain == nil {
		n++
	}
	if n == 0 {
		return
	}
	rest := copy(l.kept, l.kept[n:])
	clear(l.kept[rest:])
	l.kept = l.kept[:rest]
	if rest == 0 && cap(l.kept) > 4*owedFrames {
		l.kept = nil // an idle session is small
	}
	l.vacate()
}

// attach adds a channel. It becomes the active one if there is none, or if
// primary; resend reports whether all that is kept should go over it.
func (l *link) attach(ch *channel, primary bool) (ok, resend bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.channels) >= maxChannels || ch.keys != nil && !l.has(ch.keys) {
		return false, false
	}
	l.last++
	ch.id = l.last
	l.channels = append(l.channels[:len(l.channels):len(l.channels)], ch)
	if l.active == nil || primary {
		resend = l.active == nil
		l.use(ch)
	}
	return true, resend
}

// use makes ch, which may be nil, the active channel; l.mu is held.
func (l *link) use(ch *channel) {
	l.active = ch
	l.current.Store(ch)
}

// choose makes ch the active channel, if it is still there.
func (l *link) choose(ch *channel) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.channels {
		if c == ch {
			changed := l.active != ch
			l.use(ch)
			return changed
		}
	}
	return false
}

// drop removes a channel. If it was the active one, the youngest of the others
// takes its place: next, over which all that is kept must be sent again. Refused says
// that the peer has read nothing of what came over it.
func (l *link) drop(ch *channel, refused bool) (found bool, next *channel, left int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var rest []*channel
	for _, c := range l.channels {
		if c == ch {
			found = true
		} else {
			rest = append(rest, c)
		}
	}
	l.channels = rest
	for i := range l.kept {
		if f := &l.kept[i]; refused && f.channel == ch.id {
			f.channel = 0
		}
	}
	if found && l.active == ch {
		if len(rest) > 0 {
			next = rest[len(rest)-1]
		}
		l.use(next)
	}
	return found, next, len(rest)
}

// all returns the channels there are.
func (l *link) all() []*channel {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.channels // never changed in place
}

// resend sends everything kept over ch, oldest first, until ch fails; with late,
// only what its channel has lost: the peer has what was sent after it there, and a
// while has gone by.
func (l *link) resend(ch *channel, late func(*frame) bool) {
	for after := uint64(0); ; {
		l.mu.Lock()
		i := sort.Search(len(l.kept), func(i int) bool { return l.kept[i].sequence > after })
		for i < len(l.kept) && (l.kept[i].plain == nil || late != nil && !late(&l.kept[i])) {
			i++
		}
		if i == len(l.kept) || l.keys.Load() == nil || l.closed {
			l.mu.Unlock()
			return
		}
		f := &l.kept[i]
		after = f.sequence
		f.exposed = f.exposed || f.channel != 0
		f.channel, f.at = ch.id, time.Now().UnixNano()
		sealed := l.seal(f.typ, f.sequence, f.plain)
		l.mu.Unlock()
		err := ch.write(sealed, false)
		pool.Put(sealed)
		if err != nil {
			return
		}
	}
}

// overdue returns a filter for resend: frames that are lost though their channel
// lives. On a channel that keeps the order there are none.
func (l *link) overdue(now time.Time, patience time.Duration) (late func(*frame) bool, any bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	has := make(map[uint32]uint64, len(l.channels))
	for _, ch := range l.channels {
		has[ch.id] = ch.has
	}
	late = func(f *frame) bool {
		h, lives := has[f.channel]
		return (!lives || f.sequence < h) && now.UnixNano()-f.at > int64(patience)
	}
	for i := range l.kept {
		if l.kept[i].plain != nil && late(&l.kept[i]) {
			return late, true
		}
	}
	return nil, false
}

// waiting returns how many frames the peer is not known to have, and since when
// the oldest of them was sent.
func (l *link) waiting() (n int, since time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.kept) == 0 {
		return 0, time.Time{}
	}
	return len(l.kept), time.Unix(0, l.kept[0].at)
}

// withdraw takes back the frames of type t that the peer cannot have seen, and returns
// what was in them. It is for a link that is about to end, or to begin anew.
func (l *link) withdraw(t seal.Type) (plain [][]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.kept {
		if f := &l.kept[i]; f.typ == t && f.plain != nil && f.channel == 0 && !f.exposed {
			plain = append(plain, bytes.Clone(f.plain))
			l.release(f)
		}
	}
	l.cut()
	return plain
}

// renew begins anew with other keys: what was kept is gone, sequence numbers
// begin at 1.
func (l *link) renew(keys *seal.Keys) []*channel {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.clear()
	l.erase()
	l.keys.Store(keys)
	l.sequence = 0
	l.owed.Store(0)
	l.owedBig.Store(0)
	if l.up != nil && keys != nil {
		close(l.up)
		l.up = nil
	}
	return old
}

// awake returns a channel that is closed once there are keys.
func (l *link) awake() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.up == nil {
		l.up = make(chan struct{})
		if l.keys.Load() != nil {
			close(l.up)
		}
	}
	return l.up
}

// close ends all sending.
func (l *link) close() []*channel {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.erase()
	return l.clear()
}

// erase forgets the secret that further keys would come from.
func (l *link) erase() {
	if keys := l.keys.Load(); keys != nil {
		keys.Erase()
	}
}

// clear gives up all channels and returns them, and forgets what was kept; l.mu is
// held.
func (l *link) clear() []*channel {
	old := l.channels
	l.channels = nil
	l.use(nil)
	l.forget()
	return old
}

func (l *link) forget() {
	for i := range l.kept {
		if l.kept[i].plain != nil {
			l.release(&l.kept[i])
		}
	}
	l.kept = nil
	l.vacate()
}

// owe counts a reliable frame received and reports whether a Received is due.
func (l *link) owe(n int) bool {
	frames, bytes := l.owed.Add(1), l.owedBig.Add(int64(n))
	return frames >= owedFrames || bytes >= owedBytes
}

// paid resets what is owed, and reports whether anything was.
func (l *link) paid() bool {
	l.owedBig.Store(0)
	return l.owed.Swap(0) > 0
}

// opener returns the keys of the session's present life; nil if it has none.
func (l *link) opener() *seal.Keys { return l.keys.Load() }

// post is send for those who must not wait: the frame joins the channel's queue,
// or waits for a channel. With bounded it is refused if too much is kept; without,
// it may hold up the others.
func (l *link) post(keys *seal.Keys, t seal.Type, plain []byte, bounded bool) bool {
	l.mu.Lock()
	if !l.has(keys) || bounded && l.full() {
		l.mu.Unlock()
		pool.Put(plain)
		return false
	}
	l.sequence++
	ch := l.active
	var sealed []byte
	if ch != nil {
		sealed = l.seal(t, l.sequence, plain)
	}
	l.keep(t, plain, ch)
	l.mu.Unlock()
	if ch != nil {
		ch.post(sealed, maxKeptBytes) // if the queue has no room, the frame is late and sent again
		pool.Put(sealed)
	}
	return true
}
