package blockstore

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

func TestConfigurationReportsAllFaults(t *testing.T) {
	for _, c := range []struct {
		name   string
		config Config
		want   []string // none: valid
	}{
		{"the default", Default(), nil},
		{"an unknown type", Config{Type: "floppy"}, []string{`bucket.type: "floppy"`}},
		{"a filesystem without a directory", Config{Type: TypeFilesystem}, []string{"bucket.filesystem.directory"}},
		{"an empty S3", Config{Type: TypeS3}, []string{"bucket.s3.endpoint", "bucket.s3.bucket"}},
		{"half a credential", Config{Type: TypeS3, S3: S3Config{Endpoint: "e", Bucket: "b", AccessKey: "a"}}, []string{"bucket.s3.secret_key"}},
		{"a previous bucket", Config{Type: TypeS3, S3: S3Config{Endpoint: "e", Bucket: "b"}, Previous: &Config{Type: TypeFilesystem, Filesystem: FilesystemConfig{Directory: "d"}}}, nil},
		{"a faulty previous bucket", Config{Type: TypeS3, Previous: &Config{Type: TypeS3}}, []string{"bucket.s3.endpoint", "bucket.previous.s3.endpoint"}},
		{"a previous bucket of the previous one", Config{Type: TypeFilesystem, Filesystem: FilesystemConfig{Directory: "a"}, Previous: &Config{Previous: &Config{}}}, []string{"bucket.previous.previous", "bucket.previous.type"}},
		{"the bucket itself as the previous one", Config{Type: TypeFilesystem, Filesystem: FilesystemConfig{Directory: "a"}, Previous: &Config{Type: TypeFilesystem, Filesystem: FilesystemConfig{Directory: "./a/"}}}, []string{"it is the bucket itself"}},
		{"S3 with the credentials of the environment", Config{Type: TypeS3, S3: S3Config{Endpoint: "e", Bucket: "b"}}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.config.Validate()
			if c.want == nil {
				require.NoError(t, err)
			}
			for _, want := range c.want {
				require.ErrorContains(t, err, want)
			}
		})
	}
}

func TestASecretIsReadFromYAMLAndNotWrittenBack(t *testing.T) {
	var config S3Config
	require.NoError(t, yaml.Unmarshal([]byte("secret_key: hunter2\n"), &config))
	require.Equal(t, Secret("hunter2"), config.SecretKey)
	text, err := yaml.Marshal(config)
	require.NoError(t, err)
	require.Contains(t, string(text), "secret_key: <secret>")
}

func TestSecretsAreNeverPrinted(t *testing.T) {
	config := Config{Type: TypeS3, S3: S3Config{SecretKey: "hunter2"}}
	asJSON, err := json.Marshal(config)
	require.NoError(t, err)
	for _, text := range []string{
		fmt.Sprint(config), fmt.Sprintf("%+v", config), fmt.Sprintf("%#v", config), fmt.Sprintf("%q %x %s", config.S3.SecretKey, config.S3.SecretKey, config.S3.SecretKey), fmt.Sprintf("%v", &config.S3), string(asJSON),
	} {
		require.NotContains(t, text, "hunter2")
		require.NotContains(t, text, fmt.Sprintf("%x", "hunter2"))
	}
}

func TestAnEndpointWithASchemeIsRefusedWithWhatToWrite(t *testing.T) {
	c := Config{Type: TypeS3, S3: S3Config{Endpoint: "http://127.0.0.1:9000", Bucket: "b"}}
	require.EqualError(t, c.Validate(), `bucket.s3.endpoint: "http://127.0.0.1:9000" has a scheme; write "127.0.0.1:9000", and bucket.s3.insecure: true for HTTP`)
	c.S3.Endpoint = "https://s3.example.com"
	require.EqualError(t, c.Validate(), `bucket.s3.endpoint: "https://s3.example.com" has a scheme; write "s3.example.com"`)
}
