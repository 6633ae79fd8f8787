package importer

import (
	"context"
	"fmt"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// presence knows which blocks a tenant of the target has or had.
type presence struct {
	// known are the blocks that are there to stay and all that they were made of.
	known map[ulid.ULID]bool
	// doomed are blocks that will be deleted, and whose samples are in no other, each with
	// the reason: what is uploaded under their names would be deleted with them.
	doomed    map[ulid.ULID]blockstore.DeletionReason
	deletions []blockstore.ActiveDeletion
}

// presence returns what a tenant of the target has.
func (i *Importer) presence(ctx context.Context, id tenant.ID) (*presence, error) {
	blocks, _, err := i.target.Blocks(ctx, id)
	if err != nil {
		return nil, err
	}
	deletions, err := i.target.DeletionsOf(ctx, id)
	if err == nil {
		err = deletions.Fault
	}
	if err != nil {
		return nil, err
	}
	p := &presence{known: map[ulid.ULID]bool{}, doomed: map[ulid.ULID]blockstore.DeletionReason{}, deletions: deletions.Active}
	superseded := blockstore.Superseded(blocks)
	for block, b := range blocks {
		_, covered := superseded[block]
		switch {
		case b.Deletion == nil, b.Deletion.Reason == blockstore.DeletionCompacted && covered:
			p.known[block] = true
			for _, source := range blockstore.Sources(b.Meta) {
				p.known[source] = true
			}
		case b.Deletion.Reason == blockstore.DeletionEmpty:
			// It supersedes what it was made of until it is gone.
			for _, source := range blockstore.Sources(b.Meta) {
				p.doomed[source] = b.Deletion.Reason
			}
			p.doomed[block] = b.Deletion.Reason
		default:
			p.doomed[block] = b.Deletion.Reason
		}
	}
	return p, nil
}

// of tells whether a block is there already, or why it cannot be brought there now.
func (p *presence) of(meta tsdb.BlockMeta) (there bool, refusal string) {
	there = p.known[meta.ULID]
	for k := range p.deletions {
		d := &p.deletions[k]
		unlisted := d.Blocks == nil && d.MinMs < meta.MaxTime && d.MaxMs >= meta.MinTime
		if (unlisted || d.Includes(&blockstore.Block{Meta: meta})) && (!there || d.WholeTenant) {
			return false, fmt.Sprintf("deletion %s, which is not complete, takes away what the tenant had, this block too; import it once there is a receipt of the deletion", d.ID)
		}
	}
	if reason, ok := p.doomed[meta.ULID]; ok && !there {
		return false, fmt.Sprintf("the bucket has it, or a block made of it, and that is marked for deletion (%s); import it once that is gone, or into another tenant", reason)
	}
	return there, ""
}

// wanted tells whether a block is to be brought to the target; otherwise that was noted.
func (i *Importer) wanted(p *presence, name string, meta tsdb.BlockMeta, result *Result) bool {
	there, refusal := p.of(meta)
	switch {
	case refusal != "":
		result.Refused++
		i.say("refuse %s: %s", name, refusal)
	case there:
		result.Present++
	}
	return !there && refusal == ""
}
