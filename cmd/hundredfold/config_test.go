package main

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

func TestFaultsInTheFileAreReportedWithLineAndKey(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"unknown key":                {"data_dir: x\nfoo: 1\n", "c.yml:2: unknown key foo; known here: admin_api, auth, bucket, "},
		"unknown key in a section":   {"http:\n  listen_adr: x\n", "c.yml:2: unknown key http.listen_adr; known here: listen_address, web_config_file"},
		"unknown key deep down":      {"bucket:\n  type: s3\n  s3:\n    secret: x\n", "c.yml:4: unknown key bucket.s3.secret; known here: access_key, "},
		"unknown key of a tenant":    {"tenants:\n  a:\n    max_series: 1\n    max_sries: 1\n", "c.yml:4: unknown key tenants.a.max_sries; known here: max_bucket_bytes, max_concurrent_queries, "},
		"a key twice":                {"data_dir: a\ndata_dir: b\n", "c.yml:2: data_dir: it stands in line 1 already"},
		"a number that is none":      {"limits:\n  max_series: many\n", "c.yml:2: limits.max_series: cannot unmarshal !!str `many` into int"},
		"a duration that is none":    {"\nlimits:\n  retention: soon\n", "c.yml:3: limits.retention: not a valid duration string: \"soon\""},
		"a tenant's bad value":       {"tenants:\n  a:\n    retention: [1]\n", "c.yml:3: tenants.a.retention: cannot unmarshal !!seq into string"},
		"a value for a section":      {"http: 127.0.0.1:9009\n", "c.yml:1: http: it is a section; its keys go below it"},
		"a list of tenants":          {"tenants: [a]\n", "c.yml:1: tenants: it is a section; its keys go below it"},
		"not a mapping":              {"- a\n", "c.yml:1: the file is not a mapping of keys to values"},
		"merge keys":                 {"limits: &l\n  max_series: 1\ntenants:\n  a:\n    <<: *l\n", "c.yml:5: tenants.a.<<: merge keys are not supported"},
		"two documents":              {"data_dir: a\n---\ndata_dir: b\n", "parse c.yml: it has more than one YAML document"},
		"not YAML":                   {"a: [\n", "parse c.yml: yaml: line 1"},
		"fields without a key":       {"ingester:\n  Dir: /x\n", "c.yml:2: unknown key ingester.Dir"},
		"an empty key":               {"\"\": 1\n", "c.yml:1: unknown key "},
		"null for a tenant is empty": {"tenants:\n  a:\n", ""},
		"null for a section":         {"http:\n", ""},
		"an alias":                   {"limits: &l\n  max_series: 1\ntenants:\n  a: *l\n", ""},
		"nothing":                    {"", ""},
		"comments":                   {"# nothing\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseConfig("c.yml", []byte(c.text))
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestAllFaultsOfAFileAreReportedAtOnce(t *testing.T) {
	_, err := parseConfig("c.yml", []byte("foo: 1\nlimits:\n  retention: soon\n  max_series: x\n"))
	require.ErrorContains(t, err, "c.yml:1:")
	require.ErrorContains(t, err, "c.yml:3:")
	require.ErrorContains(t, err, "c.yml:4:")
}

func TestWhatTheFileDoesNotSayIsTheDefault(t *testing.T) {
	c, err := parseConfig("c.yml", []byte("http: {web_config_file: w}\nlimits: {max_series: 7}\n"))
	require.NoError(t, err)
	want := defaultConfig()
	want.HTTP.WebConfigFile = "w"
	want.Limits.MaxSeries = 7
	require.Equal(t, want, c)
}

func TestTenantsInheritTheLimitsOfTheFile(t *testing.T) {
	c, err := parseConfig("c.yml", []byte(`
tenants:
  a: {retention: 30d}
  b: {max_series: 0}
  c:
limits: {max_series: 7, retention: 60d}
`))
	require.NoError(t, err)
	l := &limits{}
	l.current.Store(&c)

	day := model.Duration(24 * time.Hour)
	want := tenant.DefaultLimits()
	want.MaxSeries, want.Retention = 7, 60*day
	require.Equal(t, want, l.of("c"))
	require.Equal(t, want, l.of("not named"))
	a, b := want, want
	a.Retention, b.MaxSeries = 30*day, 0
	require.Equal(t, a, l.of("a"))
	require.Equal(t, b, l.of("b"), "a zero that is written is a zero")
}

func TestInvalidValuesAreAllReportedUnderTheirKeys(t *testing.T) {
	_, err := optionsFor(t, `
data_dir: ""
http: {listen_address: nowhere}
auth: {mode: maybe}
bucket: {type: tape}
ingester: {max_series: -1}
querier: {refresh_interval: 1h}
compactor: {interval: 1ms}
distributor: {max_request_bytes: 1}
limits: {retention: 1h, max_exemplars: -2}
tenants: {"../x": {max_series: -3}}
`).load()
	for _, want := range []string{
		"data_dir: it is empty", `http.listen_address: "nowhere"`, `auth.mode: "maybe"`, "\nbucket.type: ", "\ningester.max_series: -1",
		"\nquerier.refresh_interval: 1h", "\ncompactor.interval: 1ms", "\ndistributor.max_request_bytes: 1 ", "\nlimits.retention: 1h is below 24h", "\nlimits.max_exemplars: -2",
		"\ntenants.invalid tenant name: character '/'", "\ntenants.../x.max_series: -3 is below 0",
	} {
		require.ErrorContains(t, err, want)
	}
}

func TestDirectoriesAreBelowTheDataDirectoryUnlessTheFileSaysOtherwise(t *testing.T) {
	opts, err := parseFlags([]string{"--data.dir=/d"})
	require.NoError(t, err)
	c, err := opts.load()
	require.NoError(t, err)
	require.Equal(t, []string{"/d/bucket", "/d/ingester", "/d/querier", "/d/compactor"},
		[]string{c.Bucket.Filesystem.Directory, c.Ingester.Dir, c.Querier.Dir, c.Compactor.Dir})

	c, err = optionsFor(t, "data_dir: /e\nbucket: {filesystem: {directory: /b}}\ncompactor: {dir: /c}\n").load()
	require.NoError(t, err)
	require.Equal(t, []string{"/b", "/e/ingester", "/e/querier", "/c"},
		[]string{c.Bucket.Filesystem.Directory, c.Ingester.Dir, c.Querier.Dir, c.Compactor.Dir})
}

func TestConfigurationInForceIsShownWithoutSecrets(t *testing.T) {
	c, err := optionsFor(t, "bucket: {type: s3, s3: {endpoint: e, bucket: b, access_key: AKEY, secret_key: hunter2}}\ntenants: {a: {max_series: 3}}\n").load()
	require.NoError(t, err)
	text := c.text()
	require.NotContains(t, text, "hunter2")
	require.Contains(t, text, "secret_key: <secret>")
	shown, err := parseConfig("shown", []byte(text))
	require.NoError(t, err, "what is shown is a configuration")
	require.Equal(t, c.Tenants, shown.Tenants)
	require.Equal(t, c.Limits, shown.Limits)
}

func TestChangedNamesTheKeysThatDiffer(t *testing.T) {
	a, b := defaultConfig(), defaultConfig()
	require.Empty(t, changed(a, b))
	b.Multitenancy.Enabled = true
	b.Bucket.S3.SecretKey = "x"
	b.Limits.MaxSeries++
	b.Tenants = map[tenant.ID]tenant.Limits{"a": {}}
	require.Equal(t, []string{"multitenancy.enabled", "bucket.s3.secret_key", "limits.max_series", "tenants"}, changed(a, b))
}

func TestConfigCheck(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		args []string
		code int
		want string
	}{
		"valid":         {"limits: {max_series: 1}", nil, exitOK, "the configuration is valid"},
		"unknown key":   {"limit: {max_series: 1}", nil, exitFailed, "unknown key limit"},
		"invalid value": {"limits: {max_series: -1}", nil, exitFailed, "limits.max_series: -1 is below 0"},
		"off loopback":  {"http: {listen_address: ':9009'}", nil, exitFailed, "auth: {mode: none}"},
		"open to all":   {"http: {listen_address: ':9009'}\nauth: {mode: none}", nil, exitOK, "valid"},
		"flag wins":     {"http: {listen_address: ':9009'}", []string{"--http.listen-address=localhost:9009"}, exitOK, "valid"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			args := append([]string{"--config.check", "--config.file=" + file(t, c.text)}, c.args...)
			require.Equal(t, c.code, command(t.Context(), args, &out, &out))
			require.Contains(t, out.String(), c.want)
		})
	}
}

func TestMissingConfigurationFileIsAnError(t *testing.T) {
	_, err := options{configFile: "/does/not/exist"}.load()
	require.ErrorContains(t, err, "read the configuration: open /does/not/exist")
}

func TestSettingsSkipWhatTheFileCannotSay(t *testing.T) {
	for _, s := range settings("", reflect.ValueOf(defaultConfig())) {
		require.Equal(t, strings.ToLower(s.key), s.key)
		require.NotContains(t, s.key, "..")
	}
}

// Whatever the bytes, they are a configuration or an error, and what is shown of
// a configuration is that configuration.
func FuzzParseConfig(f *testing.F) {
	f.Add([]byte("limits: &l\n  max_series: 1\ntenants:\n  a: *l\n"))
	f.Add([]byte("tenants: {a: {retention: 30d}, b: }\n"))
	f.Add([]byte("bucket: {s3: {secret_key: x}}\n---\n"))
	f.Add([]byte("? {a: b}\n: c\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parseConfig("fuzz.yml", text)
		if err != nil {
			return
		}
		c.Bucket.S3.SecretKey = ""
		again, err := parseConfig("again.yml", []byte(c.text()))
		require.NoError(t, err)
		require.Equal(t, c.Limits, again.Limits)
		require.Len(t, again.Tenants, len(c.Tenants))
	})
}

func file(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hundredfold.yml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// optionsFor returns options that load a file with text.
func optionsFor(t testing.TB, text string) options {
	t.Helper()
	return options{configFile: file(t, text)}
}
