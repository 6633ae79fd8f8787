package blockstore

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// Type says what kind of bucket holds the blocks.
type Type string

// The types of bucket.
const (
	TypeFilesystem Type = "filesystem"
	TypeS3         Type = "s3"
)

// Config says where the bucket is.
type Config struct {
	// Type is filesystem or s3.
	Type Type `yaml:"type"`
	// Filesystem is used with type filesystem.
	Filesystem FilesystemConfig `yaml:"filesystem"`
	// S3 is used with type s3.
	S3 S3Config `yaml:"s3"`
}

// FilesystemConfig describes a bucket in a directory of this machine.
type FilesystemConfig struct {
	// Directory is created if it is missing.
	Directory string `yaml:"directory"`
}

// S3Config describes a bucket in an S3-compatible object store.
type S3Config struct {
	// Endpoint is host or host:port, without a scheme.
	Endpoint string `yaml:"endpoint"`
	// Bucket must exist.
	Bucket string `yaml:"bucket"`
	// AccessKey and SecretKey go together. Without them, the credentials are those
	// of the environment (AWS_ACCESS_KEY_ID and so on), of ~/.aws/credentials, or
	// of the instance, in this order.
	AccessKey string `yaml:"access_key"`
	SecretKey Secret `yaml:"secret_key"`
	// Region may be empty where the endpoint does not need it.
	Region string `yaml:"region"`
	// Insecure speaks HTTP instead of HTTPS.
	Insecure bool `yaml:"insecure"`
}

// Default returns the configuration of the embedded bucket.
func Default() Config {
	return Config{Type: TypeFilesystem, Filesystem: FilesystemConfig{Directory: "./data/bucket"}}
}

// Validate reports all faults of c, each with its key and value.
func (c Config) Validate() error {
	switch c.Type {
	case TypeFilesystem:
		if c.Filesystem.Directory == "" {
			return errors.New("bucket.filesystem.directory: it is empty; name the directory that holds the blocks")
		}
		return nil
	case TypeS3:
		return c.S3.validate()
	default:
		return fmt.Errorf("bucket.type: %q is neither %q nor %q", c.Type, TypeFilesystem, TypeS3)
	}
}

func (c S3Config) validate() error {
	var errs []error
	if c.Endpoint == "" {
		errs = append(errs, errors.New("bucket.s3.endpoint: it is empty; give host or host:port"))
	}
	if scheme, host, ok := strings.Cut(c.Endpoint, "://"); ok {
		hint := ""
		if scheme == "http" {
			hint = ", and bucket.s3.insecure: true for HTTP"
		}
		errs = append(errs, fmt.Errorf("bucket.s3.endpoint: %q has a scheme; write %q%s", c.Endpoint, host, hint))
	}
	if c.Bucket == "" {
		errs = append(errs, errors.New("bucket.s3.bucket: it is empty; name an existing bucket"))
	}
	if (c.AccessKey == "") != (c.SecretKey == "") {
		errs = append(errs, errors.New("bucket.s3.access_key and bucket.s3.secret_key: only one of them is set; set both or none"))
	}
	return errors.Join(errs...)
}

// Secret is a string that is read from a configuration and never written out.
type Secret string

const redacted = "<secret>"

// Format implements fmt.Formatter for every verb, so that no way of printing a
// structure prints the secret inside it.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// String implements fmt.Stringer.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// MarshalYAML implements yaml.Marshaler.
func (s Secret) MarshalYAML() (any, error) { return s.String(), nil }

// MarshalText keeps the secret out of JSON and of structured logs.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
