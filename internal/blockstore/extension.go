package blockstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
)

const (
	extensionVersion = 1
	extensionKey     = "hundredfold"
)

// Extension is what Hundredfold adds to the meta.json of a block, under the key
// "hundredfold". Prometheus ignores it, and drops it when it compacts the block.
type Extension struct {
	Version int `json:"version"`
	// Shard says which of the tenant's series the block holds; nil: any.
	Shard *Shard `json:"shard,omitempty"`
	// ExternalLabels are added to all series of the block when it is read.
	ExternalLabels map[string]string `json:"external_labels,omitempty"`
	// Deletions are the deletions of series whose samples are not in the block any more.
	Deletions []ulid.ULID `json:"deletions,omitempty"`
	// Sources are the sources of a block that has only the series of its shard of some of
	// them. Its meta.json names the block itself as its only source then, so that whoever
	// knows no shards takes none of those sources for superseded.
	Sources []ulid.ULID `json:"sources,omitempty"`
}

// parseExtension decodes the extension of a meta.json; without one it is empty.
func parseExtension(text []byte) (Extension, error) {
	var meta struct {
		Extension *Extension `json:"hundredfold"`
	}
	if err := json.Unmarshal(text, &meta); err != nil {
		return Extension{}, err
	}
	if meta.Extension == nil {
		return Extension{Version: extensionVersion}, nil
	}
	return *meta.Extension, meta.Extension.check()
}

func (e *Extension) check() error {
	if e.Version != extensionVersion {
		return fmt.Errorf("its extension has version %d, this build reads %d", e.Version, extensionVersion)
	}
	if s := e.Shard; s != nil && (s.Count == 0 || s.Count > MaxShards || s.Count&(s.Count-1) != 0 || s.Index >= s.Count) {
		return fmt.Errorf("its extension names shard %d of %d", s.Index, s.Count)
	}
	return nil
}

// DecodeMeta decodes and checks the meta.json of the block of that name.
func DecodeMeta(block ulid.ULID, text []byte) (*tsdb.BlockMeta, Extension, error) {
	return parseMeta(block, text)
}

// EncodeMeta returns the text of the meta.json of a block. Sources in the meta and in the
// extension end up where readers expect them: see Extension.Sources.
func EncodeMeta(meta tsdb.BlockMeta, e Extension) ([]byte, error) {
	meta.Version = metaVersion
	if len(e.Sources) > 0 {
		meta.Compaction.Sources = []ulid.ULID{meta.ULID}
	}
	text, err := json.Marshal(meta)
	if err != nil {
		return nil, fmt.Errorf("encode meta.json of block %s: %w", meta.ULID, err)
	}
	if e.isEmpty() {
		// As any Prometheus writes it.
		return json.MarshalIndent(meta, "", "\t")
	}
	return AddExtension(text, e)
}

func (e Extension) isEmpty() bool {
	return e.Shard == nil && len(e.ExternalLabels)+len(e.Deletions)+len(e.Sources) == 0
}

// AddExtension returns the text of a meta.json with the extension e instead of the one
// that it has. All other keys stay, also those of other programs.
func AddExtension(text []byte, e Extension) ([]byte, error) {
	var meta map[string]json.RawMessage
	if err := json.Unmarshal(text, &meta); err != nil {
		return nil, fmt.Errorf("extend meta.json: %w", err)
	}
	if meta == nil {
		return nil, errors.New("extend meta.json: it is null")
	}
	// A reader takes the key in any case, and would mix two.
	maps.DeleteFunc(meta, func(key string, _ json.RawMessage) bool { return strings.EqualFold(key, extensionKey) })
	e.Version = extensionVersion
	e.Deletions = slices.Clone(e.Deletions)
	slices.SortFunc(e.Deletions, ulid.ULID.Compare)
	extension, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("extend meta.json: %w", err)
	}
	meta[extensionKey] = extension
	return json.MarshalIndent(meta, "", "\t")
}
