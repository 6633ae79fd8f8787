package blockstore

import (
	"strings"

	"github.com/oklog/ulid/v2"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

// The files of a block, relative to its prefix.
const (
	metaFile          = "meta.json"
	indexFile         = "index"
	tombstonesFile    = "tombstones"
	chunksDir         = "chunks"
	deletionMarkFile  = "deletion-mark.json"
	noCompactMarkFile = "no-compact-mark.json"
)

// SidecarFile is the side file of a block that says where things are in it; see
// internal/remoteblock. Nothing needs it.
const SidecarFile = "hundredfold-sidecar"

// The names outside of all tenants: '~' is not allowed in a tenant's name.
const (
	identityKey    = "~cluster.json"
	visitPrefix    = "~visits"
	copiedPrefix   = "~copied"
	deletionPrefix = "~deletions"
	indexPrefix    = "~index"
	indexSuffix    = ".json.gz"
)

// indexKey returns the name of the index of a tenant's blocks.
func indexKey(id tenant.ID) string { return indexPrefix + "/" + string(id) + indexSuffix }

// visitKey returns the name of the object that says who works on a tenant's blocks.
func visitKey(id tenant.ID) string { return visitPrefix + "/" + string(id) + ".json" }

// copiedKey returns the name of the list of a tenant's blocks that were copied here.
func copiedKey(id tenant.ID) string { return copiedPrefix + "/" + string(id) + ".json" }

// blockPrefix returns the prefix of all objects of a block, without a slash at its end.
func blockPrefix(id tenant.ID, block ulid.ULID) string {
	return string(id) + "/" + block.String()
}

// blockKey returns the name of the object that is the file of a block.
func blockKey(id tenant.ID, block ulid.ULID, file string) string {
	return blockPrefix(id, block) + "/" + file
}

// parseKey splits the name of an object of a block. ok is false for the name of
// anything else: a foreign object, or one that another version of this program put there.
func parseKey(name string) (id tenant.ID, block ulid.ULID, file string, ok bool) {
	first, rest, found := strings.Cut(name, "/")
	if !found {
		return "", ulid.ULID{}, "", false
	}
	id, err := tenant.Parse(first)
	if err != nil {
		return "", ulid.ULID{}, "", false
	}
	second, file, found := strings.Cut(rest, "/")
	if !found || file == "" {
		return "", ulid.ULID{}, "", false
	}
	block, err = ulid.ParseStrict(second)
	// ULIDs are read in either case, but only the canonical form is a name of ours.
	if err != nil || block.String() != second {
		return "", ulid.ULID{}, "", false
	}
	return id, block, file, true
}

// isBlockFile tells the files of a plain block from marks and side files.
func isBlockFile(file string) bool {
	switch file {
	case metaFile, indexFile, tombstonesFile:
		return true
	}
	return isSegment(file)
}

// isSegment tells whether file is a segment of chunks.
func isSegment(file string) bool {
	dir, name, found := strings.Cut(file, "/")
	return found && dir == chunksDir && name != "" && strings.Trim(name, "0123456789") == ""
}
