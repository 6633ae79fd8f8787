package blockupload

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

const (
	hour = int64(time.Hour / time.Millisecond)
	acme = tenant.ID("acme")
)

type bed struct {
	*Uploads
	t     *testing.T
	root  string
	store *blockstore.Store
	seen  []ulid.ULID
}

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{t: t, root: t.TempDir()}
	var err error
	b.store, err = blockstore.Open(blockstore.Config{Type: blockstore.TypeFilesystem, Filesystem: blockstore.FilesystemConfig{Directory: b.root}}, nil, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.store.Close()) })
	b.Uploads = New(Config{Enabled: true, Scratch: t.TempDir()}, b.store, func(_ tenant.ID, block ulid.ULID) { b.seen = append(b.seen, block) }, nil)
	return b
}

// ask sends a request of acme and returns status and body.
func (b *bed) ask(method, path string, body []byte) (int, string) {
	b.t.Helper()
	r := httptest.NewRequestWithContext(tenant.NewContext(b.t.Context(), acme), method, path, bytes.NewReader(body))
	w := httptest.NewRecorder()
	b.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

func (b *bed) mustAsk(method, path string, body []byte) string {
	b.t.Helper()
	code, text := b.ask(method, path, body)
	require.Equal(b.t, http.StatusOK, code, text)
	return text
}

// validateOne validates the block that waits.
func (b *bed) validateOne() {
	b.t.Helper()
	b.validate(b.t.Context(), <-b.queue)
}

func (b *bed) check(block string) (result, fault string) {
	b.t.Helper()
	var answer struct{ Result, Error string }
	require.NoError(b.t, json.Unmarshal([]byte(b.mustAsk("GET", Prefix+block+"/check", nil)), &answer))
	return answer.Result, answer.Error
}

// upload sends the files of the block in dir.
func (b *bed) upload(dir string) {
	b.t.Helper()
	for _, name := range []string{"index", "chunks/000001"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(b.t, err)
		b.mustAsk("POST", Prefix+filepath.Base(dir)+"/files?path="+url.QueryEscape(name), text)
	}
}

func newBlock(t *testing.T) (dir, name string, meta []byte) {
	t.Helper()
	dir = blocktest.Write(t, t.TempDir(), 0, 2*hour, blocktest.Floats("a", 0, 2*hour, 15000))
	meta, err := os.ReadFile(filepath.Join(dir, "meta.json"))
	require.NoError(t, err)
	return dir, filepath.Base(dir), meta
}

func (b *bed) blocks() map[ulid.ULID]blockstore.Block {
	b.t.Helper()
	blocks, _, err := b.store.Blocks(b.t.Context(), acme)
	require.NoError(b.t, err)
	return blocks
}

func TestAnUploadedBlockBecomesVisibleOnlyWhenItWasValidated(t *testing.T) {
	b := newBed(t)
	dir, name, meta := newBlock(t)
	meta = bytes.Replace(meta, []byte(`"sources": [`), []byte(`"sources": ["01ARZ3NDEKTSV4RRFFQ69G5FAV", `), 1)
	meta = bytes.Replace(meta, []byte(`{`), []byte(`{"thanos": {"labels": {"cluster": "eu", "__org_id__": "x"}},`), 1)
	code, _ := b.ask("GET", Prefix+name+"/check", nil)
	require.Equal(t, http.StatusNotFound, code)
	b.mustAsk("POST", Prefix+name+"/start", meta)
	b.upload(dir)
	result, _ := b.check(name)
	require.Equal(t, "uploading", result)
	require.Empty(t, b.blocks())
	b.mustAsk("POST", Prefix+name+"/finish", nil)
	result, _ = b.check(name)
	require.Equal(t, "validating", result)
	code, _ = b.ask("POST", Prefix+name+"/files?path=index", []byte("x"))
	require.Equal(t, http.StatusConflict, code, "nothing changes while it is validated")

	b.validateOne()
	result, _ = b.check(name)
	require.Equal(t, "complete", result)
	block := b.blocks()[ulid.MustParse(name)]
	require.Equal(t, []ulid.ULID{ulid.MustParse(name)}, block.Meta.Compaction.Sources, "it supersedes no other block")
	require.Equal(t, map[string]string{"cluster": "eu"}, block.Extension.ExternalLabels)
	require.Equal(t, blocktest.Samples(t, dir), blocktest.Samples(t, filepath.Join(b.root, string(acme), name)))
	require.True(t, block.HasSidecar, "so that its first query is quick")
	require.Len(t, b.seen, 1)
	code, _ = b.ask("POST", Prefix+name+"/start", meta)
	require.Equal(t, http.StatusConflict, code)
}

// late is a body that arrives once the block it is for has become visible.
type late struct {
	io.Reader
	publish func()
}

func (l *late) Read(p []byte) (int, error) {
	if l.publish != nil {
		l.publish()
		l.publish = nil
	}
	return l.Reader.Read(p)
}

func TestAFileThatArrivesAfterTheValidationChangesNothing(t *testing.T) {
	b := newBed(t)
	dir, name, meta := newBlock(t)
	b.mustAsk("POST", Prefix+name+"/start", meta)
	b.upload(dir)
	body := &late{Reader: bytes.NewReader([]byte("x")), publish: func() {
		b.mustAsk("POST", Prefix+name+"/finish", nil)
		b.validateOne()
	}}
	r := httptest.NewRequestWithContext(tenant.NewContext(t.Context(), acme), "POST", Prefix+name+"/files?path=index", body)
	r.ContentLength = 1
	b.ServeHTTP(httptest.NewRecorder(), r)
	result, fault := b.check(name)
	require.Equal(t, "complete", result, fault)
	require.Equal(t, blocktest.Samples(t, dir), blocktest.Samples(t, filepath.Join(b.root, string(acme), name)))
}

func TestADamagedOrIncompleteUploadStaysInvisibleAndCanBeMended(t *testing.T) {
	b := newBed(t)
	dir, name, meta := newBlock(t)
	b.mustAsk("POST", Prefix+name+"/start", meta)
	text, err := os.ReadFile(filepath.Join(dir, "index"))
	require.NoError(t, err)
	text[len(text)/2] ^= 1
	b.mustAsk("POST", Prefix+name+"/files?path=index", text)
	b.mustAsk("POST", Prefix+name+"/finish", nil)
	b.validateOne()
	result, fault := b.check(name)
	require.Equal(t, "failed", result)
	require.Contains(t, fault, "no such file", "there are no chunks")
	require.Empty(t, b.blocks())

	b.upload(dir)
	b.mustAsk("POST", Prefix+name+"/finish", nil)
	b.validateOne()
	result, _ = b.check(name)
	require.Equal(t, "complete", result)
}

func TestBadRequestsAreRefused(t *testing.T) {
	b := newBed(t)
	_, name, meta := newBlock(t)
	future := bytes.Replace(meta, []byte(`"minTime": 0`), []byte(`"minTime": 99999999999999`), 1)
	future = bytes.Replace(future, []byte(`"maxTime": 7200000`), []byte(`"maxTime": 99999999999999`), 1)
	require.NotEqual(t, meta, future)
	for _, c := range []struct {
		path string
		body []byte
		code int
	}{
		{Prefix + name + "/files?path=index", []byte("x"), http.StatusNotFound},
		{Prefix + name + "/finish", nil, http.StatusNotFound},
		{Prefix + "nonsense/start", meta, http.StatusBadRequest},
		{Prefix + name + "/start", []byte("{"), http.StatusBadRequest},
		{Prefix + ulid.Make().String() + "/start", meta, http.StatusBadRequest},
		{Prefix + name + "/start", future, http.StatusBadRequest},
		{Prefix + name + "/start", meta, http.StatusOK},
		{Prefix + name + "/files?path=meta.json", []byte("x"), http.StatusBadRequest},
		{Prefix + name + "/files?path=" + url.QueryEscape("../../x"), []byte("x"), http.StatusBadRequest},
		{Prefix + name + "/files?path=deletion-mark.json", []byte("x"), http.StatusBadRequest},
	} {
		code, text := b.ask("POST", c.path, c.body)
		require.Equal(t, c.code, code, "%s: %s", c.path, text)
	}
	b.cfg.Enabled = false
	code, text := b.ask("POST", Prefix+name+"/start", meta)
	require.Equal(t, http.StatusForbidden, code)
	require.Contains(t, text, "admin_api")
}

func TestAnInterruptedValidationIsToBeFinishedAgain(t *testing.T) {
	b := newBed(t)
	dir, name, meta := newBlock(t)
	b.mustAsk("POST", Prefix+name+"/start", meta)
	b.upload(dir)
	b.mustAsk("POST", Prefix+name+"/finish", nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b.validate(ctx, <-b.queue)
	result, fault := b.check(name)
	require.Equal(t, "failed", result)
	require.Contains(t, fault, "again")
	b.mustAsk("POST", Prefix+name+"/finish", nil)
	b.validateOne()
	result, _ = b.check(name)
	require.Equal(t, "complete", result)
}

// uploaded uploads a new block in full.
func (b *bed) uploaded() (dir, name string, meta []byte) {
	b.t.Helper()
	dir, name, meta = newBlock(b.t)
	b.finish(dir, name, meta)
	result, fault := b.check(name)
	require.Equal(b.t, "complete", result, fault)
	return dir, name, meta
}

func (b *bed) finish(dir, name string, meta []byte) {
	b.t.Helper()
	b.mustAsk("POST", Prefix+name+"/start", meta)
	b.upload(dir)
	b.mustAsk("POST", Prefix+name+"/finish", nil)
	b.validateOne()
}

func TestABlockThatIsBeingDeletedIsNeitherCompleteNorTakenUntilItIsGone(t *testing.T) {
	mark := func(reason blockstore.DeletionReason) func(*bed, ulid.ULID) {
		return func(b *bed, block ulid.ULID) {
			require.NoError(t, b.store.MarkForDeletion(t.Context(), acme, block, blockstore.DeletionMark{Time: time.Now(), Reason: reason}))
		}
	}
	for name, doom := range map[string]func(*bed, ulid.ULID){
		"quota": mark(blockstore.DeletionQuota), "retention": mark(blockstore.DeletionRetention), "tenant": mark(blockstore.DeletionTenant), "empty": mark(blockstore.DeletionEmpty),
		"half deleted": func(b *bed, block ulid.ULID) {
			mark(blockstore.DeletionQuota)(b, block)
			require.NoError(t, os.Remove(filepath.Join(b.root, string(acme), block.String(), "meta.json")))
			for _, file := range []string{planFile, stateFile} {
				require.NoError(t, os.Remove(filepath.Join(b.root, string(acme), block.String(), file)))
			}
		},
		"a deletion of the tenant": func(b *bed, block ulid.ULID) {
			d := blockstore.Deletion{ID: ulid.Make(), WholeTenant: true, MaxMs: 100 * hour, Accepted: time.Now(), Blocks: []ulid.ULID{block}}
			require.NoError(t, b.store.PutDeletion(t.Context(), acme, d))
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			dir, block, meta := b.uploaded()
			doom(b, ulid.MustParse(block))
			result, fault := b.check(block)
			require.Equal(t, "failed", result)
			require.Contains(t, fault, "bring it")
			code, text := b.ask("POST", Prefix+block+"/start", meta)
			require.Equal(t, http.StatusConflict, code)
			require.Contains(t, text, "bring it")

			// Once it is gone it is taken.
			require.NoError(t, b.store.Delete(t.Context(), acme, ulid.MustParse(block)))
			require.NoError(t, os.RemoveAll(filepath.Join(b.root, "~deletions")))
			b.finish(dir, block, meta)
			require.Contains(t, b.blocks(), ulid.MustParse(block))
			require.Nil(t, b.blocks()[ulid.MustParse(block)].Deletion)
		})
	}
}

func TestAnUploadThatADeletionOvertookFails(t *testing.T) {
	b := newBed(t)
	dir, name, meta := newBlock(t)
	b.mustAsk("POST", Prefix+name+"/start", meta)
	b.upload(dir)
	b.mustAsk("POST", Prefix+name+"/finish", nil)
	d := blockstore.Deletion{ID: ulid.Make(), WholeTenant: true, MaxMs: 100 * hour, Accepted: time.Now()} // its blocks are not listed yet
	require.NoError(t, b.store.PutDeletion(t.Context(), acme, d))
	b.validateOne()
	result, fault := b.check(name)
	require.Equal(t, "failed", result)
	require.Contains(t, fault, d.ID.String())
	require.Empty(t, b.blocks())
}

func TestABlockThatWasCompactedIntoAnotherIsComplete(t *testing.T) {
	b := newBed(t)
	_, name, meta := b.uploaded()
	other := blocktest.Write(t, t.TempDir(), 0, 2*hour, blocktest.Floats("a", 0, 2*hour, 15000))
	text, err := blockstore.EncodeMeta(tsdb.BlockMeta{
		ULID: ulid.MustParse(filepath.Base(other)), MaxTime: 2 * hour, Compaction: tsdb.BlockMetaCompaction{Level: 2, Sources: []ulid.ULID{ulid.MustParse(name)}},
	}, blockstore.Extension{})
	require.NoError(t, err)
	require.NoError(t, b.store.UploadAs(t.Context(), acme, other, text))
	require.NoError(t, b.store.MarkForDeletion(t.Context(), acme, ulid.MustParse(name), blockstore.DeletionMark{Time: time.Now(), Reason: blockstore.DeletionCompacted}))
	for range 2 {
		result, fault := b.check(name)
		require.Equal(t, "complete", result, fault)
		code, _ := b.ask("POST", Prefix+name+"/start", meta)
		require.Equal(t, http.StatusConflict, code)
		require.NoError(t, b.store.Delete(t.Context(), acme, ulid.MustParse(name)))
	}
}
