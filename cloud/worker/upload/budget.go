package upload

import (
	"context"
	"sync"
	"time"
)

// budget bounds the retries of all jobs together: a bucket of tokens that fills
// by itself at a pace that an ill store can bear, and faster with each success.
type budget struct {
	size float64
	turn chan struct{} // one waits for the next token, the others for their turn
	more chan struct{} // there may be more than before

	mu     sync.Mutex
	tokens float64
	at     time.Time // when tokens was right
}

const (
	// refillEvery is how often the store is asked for a sign of life, however
	// many jobs wait for it.
	refillEvery = 500 * time.Millisecond
	// refundOf is how many retries a success allows: more than one, so that what
	// waits drains faster and faster.
	refundOf = 2
)

// init fills the bucket with so many tokens.
func (b *budget) init(size int) {
	b.size, b.tokens, b.at = float64(size), float64(size), time.Now()
	b.turn, b.more = make(chan struct{}, 1), make(chan struct{}, 1)
}

// take waits for a token. It reports false when ctx ended.
func (b *budget) take(ctx context.Context) bool {
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-ctx.Done():
		return false
	}
	for {
		wait := b.tryTake()
		if wait == 0 {
			return true
		}
		if !pause(ctx, wait, b.more) {
			return false
		}
	}
}

// tryTake takes a token, or says how long it will take to be there.
func (b *budget) tryTake() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.tokens = min(b.size, b.tokens+float64(now.Sub(b.at))/float64(refillEvery))
	b.at = now
	if b.tokens >= 1 {
		b.tokens--
		return 0
	}
	return max(time.Duration((1-b.tokens)*float64(refillEvery)), time.Millisecond)
}

// refund is for a success.
func (b *budget) refund() {
	b.mu.Lock()
	b.tokens = min(b.size, b.tokens+refundOf)
	b.mu.Unlock()
	select {
	case b.more <- struct{}{}:
	default: // whoever waits will see
	}
}
