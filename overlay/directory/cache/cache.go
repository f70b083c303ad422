// Package cache has what keeps a directory from asking twice: entries with a
// lifetime, and lookups that several callers share.
package cache

import (
	"container/list"
	"sync"
	"time"
)

// Cache holds at most max entries, each until its time is over; the one used
// longest ago goes first. Safe for concurrent use.
type Cache[K comparable, V any] struct {
	max int

	mu    sync.Mutex
	index map[K]*list.Element
	order *list.List // of *entry, used last at the back
}

type entry[K comparable, V any] struct {
	key     K
	value   V
	stored  time.Time
	expires time.Time
}

// New returns a cache of at most max entries.
func New[K comparable, V any](max int) *Cache[K, V] {
	return &Cache[K, V]{max: max, index: make(map[K]*list.Element), order: list.New()}
}

// Get returns what is under k, and when it was put there.
func (c *Cache[K, V]) Get(k K) (v V, stored time.Time, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.index[k]
	if !ok {
		return v, stored, false
	}
	item := e.Value.(*entry[K, V])
	if !time.Now().Before(item.expires) {
		c.drop(e)
		return v, stored, false
	}
	c.order.MoveToBack(e)
	return item.value, item.stored, true
}

// Put stores v under k for ttl.
func (c *Cache[K, V]) Put(k K, v V, ttl time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.index[k]; ok {
		c.drop(e)
	}
	if len(c.index) >= c.max {
		c.drop(c.order.Front())
	}
	now := time.Now()
	c.index[k] = c.order.PushBack(&entry[K, V]{k, v, now, now.Add(ttl)})
}

// Remove forgets what is under k.
func (c *Cache[K, V]) Remove(k K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.index[k]; ok {
		c.drop(e)
	}
}

// Values returns all that has not expired, used longest ago first.
func (c *Cache[K, V]) Values() []V {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []V
	for e := c.order.Front(); e != nil; e = e.Next() {
		if item := e.Value.(*entry[K, V]); time.Now().Before(item.expires) {
			out = append(out, item.value)
		}
	}
	return out
}

// RemoveFunc removes the entries for which f is true. f must not use c.
func (c *Cache[K, V]) RemoveFunc(f func(K, V) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := c.order.Front(); e != nil; {
		next := e.Next()
		if x := e.Value.(*entry[K, V]); f(x.key, x.value) {
			c.drop(e)
		}
		e = next
	}
}

func (c *Cache[K, V]) drop(e *list.Element) {
	c.order.Remove(e)
	delete(c.index, e.Value.(*entry[K, V]).key)
}
