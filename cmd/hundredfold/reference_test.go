package main

import (
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
)

const referencePath = "../../docs/configuration.md"

var update = flag.Bool("update", false, "write docs/configuration.md")

// The budget of settings: a new one needs a reason that a user could act on.
const maxSettings = 60

// descriptions say what each key does, in Markdown.
func descriptions() map[string]string {
	return map[string]string{
		"data_dir":                         "Directory of everything this process keeps: write-ahead logs, the embedded bucket, copies. One process at a time uses it. The flag `--data.dir` overrides it.",
		"http.listen_address":              "`HOST:PORT` to serve HTTP on. An address that other machines can reach needs authentication in `http.web_config_file`, or `auth.mode: none`. The flag `--http.listen-address` overrides it.",
		"http.web_config_file":             "File with TLS and passwords in the [format of Prometheus](https://prometheus.io/docs/prometheus/latest/configuration/https/). New certificates and passwords take effect at once.",
		"auth.mode":                        "`required`: an address that other machines can reach is served only if the web configuration has `basic_auth_users` or verifies client certificates (`client_auth_type: RequireAndVerifyClientCert`). `none`: whoever reaches the listener may read and write everything.",
		"grpc.listen_address":              "In a cluster, `HOST:PORT` for the other processes. An address that other machines can reach needs `cluster.secret_file` or `grpc.tls`. The flag `--grpc.listen-address` overrides it.",
		"grpc.tls.cert_file":               "Certificate of this process, in PEM. With the three files, processes prove who they are to each other by certificates of your own; new files take effect with new connections.",
		"grpc.tls.key_file":                "Its key.",
		"grpc.tls.ca_file":                 "Certificates of the authorities that signed those of all processes.",
		"cluster.enabled":                  "Whether this process is a member of a cluster, see [cluster.md](cluster.md). `--role` with less than all roles, `cluster.gossip.join` and `cluster.peers` say so too.",
		"cluster.name":                     "Members of clusters with different names keep away from each other.",
		"cluster.zone":                     "What fails together with this process: a machine, a rack, an availability zone. Replicas of a series lie in different zones. The flag `--zone` overrides it.",
		"cluster.replication_factor":       "How many ingesters hold each sample, 1 to 3. All processes need the same.",
		"cluster.secret_file":              "File with the secret that all members share, at least 16 bytes: gossip and gRPC are encrypted with it, and who does not know it is refused.",
		"cluster.mode":                     "`required`: addresses that other machines can reach need a secret or certificates. `none`: whoever reaches them may read and write everything.",
		"cluster.gossip.listen_address":    "`HOST:PORT` for gossip, TCP and UDP. The flag `--gossip.listen-address` overrides it.",
		"cluster.gossip.advertise_address": "`HOST:PORT` under which others reach `listen_address`, if that is not it. They reach gRPC and HTTP at the same host if those listen on all addresses.",
		"cluster.gossip.join":              "`HOST:PORT` of members to join at the start; a few that live long are enough. The flag `--gossip.join` overrides it.",
		"cluster.peers":                    "Instead of gossip: `HOST:PORT` of gRPC of all other processes, which are asked every second.",
		"multitenancy.enabled":             "Whether the header `X-Scope-OrgID` selects the tenant; requests without it are then answered 401. Off, everything belongs to the tenant `default`.",
		"admin_api.enabled":                "Whether tenants may delete their series, or all they have, see [operating.md](operating.md), by `/api/v1/admin/`. And whether they may upload blocks, by `/api/v1/upload/block/`. All processes need the same. On, a querier that cannot reach the bucket for 30 s answers no queries, since it might show what is deleted.",
		"self_monitoring.enabled":          "Whether the process writes its own metrics into itself every 15 s, as job `hundredfold`: at most 2,000 series, in the tenant `default`, or `hundredfold` with multi-tenancy.",
		"bucket.type":                      "`filesystem`: blocks lie in a directory of this machine. `s3`: they lie in an S3-compatible object store.",
		"bucket.filesystem.directory":      "Where blocks lie, with type `filesystem`. Empty: `bucket` in `data_dir`; the processes of a cluster must share one.",
		"bucket.s3.endpoint":               "`HOST` or `HOST:PORT` of the object store, without a scheme.",
		"bucket.s3.bucket":                 "Name of a bucket that exists.",
		"bucket.s3.access_key":             "Together with `secret_key`. Without both, credentials come from the environment (`AWS_ACCESS_KEY_ID` and so on), from `~/.aws/credentials` or from the instance, in this order.",
		"bucket.s3.secret_key":             "See `access_key`. It is never shown.",
		"bucket.s3.region":                 "May be empty where the endpoint does not need it.",
		"bucket.s3.insecure":               "Whether to speak HTTP instead of HTTPS.",
		"bucket.previous":                  "Where blocks were kept before: a section with the keys of `bucket`. They are read from there and copied; once `hundredfold_bucket_previous_blocks` is 0, take it out.",

		"distributor.max_inflight_bytes": "Bytes of memory for requests that are being received; at least 6 times `max_request_bytes`. A tenant may use half of it. Requests beyond it are answered 503, and senders send them again. In a cluster, labels and metadata on their way to ingesters may take another 512 MiB. Raise it if `hundredfold_http_requests_total{code=\"503\"}` of the write route rises while the process has memory to spare.",
		"distributor.max_request_bytes":  "Bytes of one request after decompression, 64 KiB to 1 GiB. A larger one is answered 400 and lost, because senders do not split requests.",
		"ingester.max_series":            "Series in memory, of all tenants together. Beyond it new series are refused, known ones go on. `0`: as many as the memory of the process allows.",
		"querier.refresh_interval":       "How often the block indexes in the bucket are looked at, 1s to 15m. A block that nobody tells of is read at most this much after its index has it.",
		"querier.cache_bytes":            "Bytes of disk for the parts of blocks that queries have read, in `querier` in `data_dir`, at least 64 MiB; nothing if the bucket is on this machine. Parts that were not used for longest give way. Raise it if `hundredfold_page_cache_fetched_bytes_total` keeps rising while the same dashboards are looked at, and the disk has room.",
		"querier.results_cache_bytes":    "Bytes on local disk for results of range queries, at least 8 MiB; a tenth of it is kept in memory. Results are used again only as long as the data that they were computed from is the same. `0` keeps none. Raise it if `hundredfold_querier_results_cache_evictions_total` rises while dashboards over long ranges are slow.",
		"compactor.dir":                  "Directory for blocks that are being made; empty: `compactor` in `data_dir`. It needs room for the largest day of a tenant and a tenth more.",
		"compactor.interval":             "Time between two passes over all tenants, at least 1s.",
		"compactor.deletion_delay":       "How long a block stays in the bucket after it was marked for deletion. It must be longer than `querier.refresh_interval` and the longest query.",

		"limits.max_series":              "Series in memory. Beyond it, samples of new series are answered 429 and dropped.",
		"limits.shard_size":              "In a cluster, how many ingesters hold the tenant's series, so that tenants share few of them; a multiple of the number of zones. `0`: all. All processes need the same.",
		"limits.max_labels_per_series":   "Labels of one series, its name included. Series beyond it are rejected with 400, as with the next two.",
		"limits.max_label_name_bytes":    "Length of a label's name.",
		"limits.max_label_value_bytes":   "Length of a label's value.",
		"limits.max_exemplars":           "Exemplars kept; the oldest give way. `0` keeps none.",
		"limits.out_of_order_window":     "How much older than the tenant's newest sample a sample may be, at most 24h. `0s` takes only samples in order.",
		"limits.retention":               "How long samples are kept, at least 1d. `0s`: for ever.",
		"limits.retention_rules":         "A list of `{selector, retention}`: how long the samples of some series are kept. The first rule whose selector matches a series decides; the others are kept for `retention`. Queries stop seeing what is too old within an hour; [operating.md](operating.md) says when it is deleted, and how to see that before.",
		"limits.max_bucket_bytes":        "Bytes of the tenant's blocks in the bucket. Beyond it the oldest blocks are deleted.",
		"limits.max_query_samples":       "Samples that one query may hold in memory at once.",
		"limits.max_query_duration":      "How long one query may run.",
		"limits.max_concurrent_queries":  "Queries that run at once; more wait for a place.",
		"tenants":                        "Limits of single tenants: a mapping from a tenant's name to the keys of `limits` that differ for it. See below.",
		"limits.max_query_bytes":         "Bytes of memory that one query may hold: labels, chunks, what ingesters send, points and results. Beyond it the answer is 422 and says the numbers. `0`: no limit. Raise it for tenants with queries over very many series, if `hundredfold_querier_query_peak_bytes` leaves the process memory to spare.",
		"limits.max_query_fetched_bytes": "Bytes that one query may fetch from the object store; what is on the local disk already does not count. Beyond it the answer is 422 and says the numbers. `0`: no limit. Lower it where fetching costs money, raise it where queries over long ranges are refused.",
	}
}

func TestEverySettingIsDescribedAndThereAreFew(t *testing.T) {
	described := descriptions()
	all := settings("", reflect.ValueOf(defaultConfig()))
	for _, s := range all {
		require.NotEmpty(t, described[s.key], "docs/configuration.md must say what %s does: describe it in reference_test.go", s.key)
		delete(described, s.key)
	}
	require.Empty(t, described, "these keys do not exist")
	require.LessOrEqual(t, len(all), maxSettings)
}

func TestConfigurationPageIsUpToDate(t *testing.T) {
	page := referencePage()
	if *update {
		require.NoError(t, os.WriteFile(referencePath, []byte(page), 0o644))
	}
	written, err := os.ReadFile(referencePath)
	require.NoError(t, err)
	require.Equal(t, string(written), page, "run: go test ./cmd/hundredfold -run ConfigurationPage -update")
}

func TestExamplesOfTheConfigurationPageAreValid(t *testing.T) {
	page := referencePage()
	examples := strings.Split(page, "```yaml\n")[1:]
	require.NotEmpty(t, examples)
	for _, example := range examples {
		text, _, ok := strings.Cut(example, "```")
		require.True(t, ok)
		_, err := parseConfig("example.yml", []byte(text))
		require.NoError(t, err, text)
	}
}

func referencePage() string {
	var b strings.Builder
	b.WriteString(`<!-- Generated from cmd/hundredfold; change reference_test.go and run
     go test ./cmd/hundredfold -run ConfigurationPage -update -->

# Configuration

Hundredfold runs without any configuration. What it needs to know comes from flags
and from one YAML file, named by ` + "`--config.file`" + `. Flags override the file. The file
is strict: an unknown key, a key that stands twice or a value of the wrong type is an
error that names the line and the key. ` + "`--config.check`" + ` checks it and exits; a running
process shows what is in force, without secrets, at ` + "`/api/v1/status/config`" + `.

Durations are written like ` + "`30s`, `2h`, `7d` or `1y`" + `. Relative paths start at the
directory in which the process runs.

## Flags

`)
	writeFlagTable(&b)
	b.WriteString(`
The environment variables ` + "`GOGC` and `GOMEMLIMIT`" + ` are respected. Without ` + "`GOMEMLIMIT`" + ` the heap
may fill 90 % of the memory that the cgroup allows. Without ` + "`GOGC`" + ` garbage is collected when the heap
has grown by 20 %, or by 24 MiB if that is more, but at most by 75 %, in a process with an ingester, and
by 75 % in others ([ADR 022](adr/022-memory-of-a-series.md) says what that costs and saves).

## Reloading

` + "`limits` and `tenants`" + ` take effect without a restart: send the process SIGHUP, or
` + "`POST /-/reload`" + `. A file with errors changes nothing: the limits before it hold, the
errors are logged, or answered, and ` + "`hundredfold_config_last_reload_successful`" + ` is 0.
Other changes are named in the log and wait for the next start.

## Settings

A limit of ` + "`0`" + ` is no limit, unless its meaning says otherwise.

| key | default | meaning |
|---|---|---|
`)
	described := descriptions()
	for _, s := range settings("", reflect.ValueOf(defaultConfig())) {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", s.key, defaultText(s), described[s.key])
	}
	b.WriteString(`
## Examples

A server for several teams, with passwords, whose blocks lie in S3:

` + "```yaml" + `
data_dir: /var/lib/hundredfold
http:
  listen_address: 0.0.0.0:9009
  web_config_file: /etc/hundredfold/web.yml
multitenancy:
  enabled: true
bucket:
  type: s3
  s3:
    endpoint: s3.eu-central-1.amazonaws.com
    bucket: example-metrics
` + "```" + `

A store of one's own that speaks S3 (MinIO, Ceph, versitygw), here without TLS. Blocks go
there once a window of two hours is complete, so the bucket stays empty for about three:

` + "```yaml" + `
bucket:
  type: s3
  s3:
    endpoint: 127.0.0.1:9000
    insecure: true
    bucket: metrics
    access_key: hundredfold
    secret_key: change-me
` + "```" + `

Limits for all tenants, and for some that need others. What a tenant's section does
not say holds as in ` + "`limits`" + `:

` + "```yaml" + `
limits:
  retention: 1y
  max_series: 1000000
tenants:
  team-checkout:
    max_series: 5000000
  team-trial:
    retention: 30d
    max_query_duration: 30s
    max_bucket_bytes: 50000000000
    retention_rules:
      - {selector: '{namespace="dev"}', retention: 7d}
      - {selector: '{__name__=~"apiserver_.*_bucket"}', retention: 14d}
` + "```" + `
`)
	return b.String()
}

func writeFlagTable(b *strings.Builder) {
	b.WriteString("| flag | default | meaning |\n|---|---|---|\n")
	var opts options
	newFlagSet(&opts).VisitAll(func(f *flag.Flag) {
		name, usage := flag.UnquoteUsage(f)
		if name != "" {
			name = "=" + name
		}
		value := ""
		if f.DefValue != "" && f.DefValue != "false" {
			value = "`" + f.DefValue + "`"
		}
		fmt.Fprintf(b, "| `--%s%s` | %s | %s |\n", f.Name, name, value, usage)
	})
}

func defaultText(s setting) string {
	switch v := s.value.(type) {
	case model.Duration:
		return "`" + v.String() + "`"
	case bool, int, int64:
		return fmt.Sprintf("`%v`", v)
	}
	if text := fmt.Sprintf("%v", s.value); text != "" && text != "map[]" && text != "[]" && text != "<nil>" {
		return "`" + text + "`"
	}
	return ""
}
