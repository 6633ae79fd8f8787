package main

import (
	"net/http"
	"path/filepath"

	"github.com/hundredfold/hundredfold/internal/blockupload"
)

// startUploads starts what takes blocks of clients. Any process does: what is uploaded
// lies in the bucket meanwhile.
func (p *process) startUploads(covers *coverage, s *starter, c *components) http.Handler {
	uploads := blockupload.New(blockupload.Config{
		Enabled: p.cfg.AdminAPI.Enabled,
		Scratch: filepath.Join(p.cfg.DataDir, "uploads"),
	}, p.store, covers.uploaded, p.logger.With("component", "uploads"))
	if p.cfg.AdminAPI.Enabled {
		c.uploads = s.start("uploads", uploads.Run)
	}
	return uploads
}
