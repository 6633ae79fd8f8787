package blockstore

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
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
	// Previous is where blocks were kept before. They are read from there until they
	// have been copied; nothing is written there. It has no Previous of its own.
	Previous *Config `yaml:"previous,omitempty"`
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
	err := c.validate("bucket")
	if c.Previous == nil {
		return err
	}
	switch {
	case c.Previous.Previous != nil:
		err = errors.Join(err, errors.New("bucket.previous.previous: blocks can be brought from one previous bucket at a time; wait until those of the older one are copied"))
	case c.Previous.place() == c.place():
		err = errors.Join(err, errors.New("bucket.previous: it is the bucket itself"))
	}
	return errors.Join(err, c.Previous.validate("bucket.previous"))
}

// validate reports the faults of the bucket at key.
func (c Config) validate(key string) error {
	switch c.Type {
	case TypeFilesystem:
		if c.Filesystem.Directory == "" {
			return fmt.Errorf("%s.filesystem.directory: it is empty; name the directory that holds the blocks", key)
		}
		return nil
	case TypeS3:
		return c.S3.validate(key + ".s3")
	default:
		return fmt.Errorf("%s.type: %q is neither %q nor %q", key, c.Type, TypeFilesystem, TypeS3)
	}
}

// place tells buckets apart.
func (c Config) place() string {
	if c.Type == TypeFilesystem {
		return "filesystem " + filepath.Clean(c.Filesystem.Directory)
	}
	return fmt.Sprintf("%s %s/%s", c.Type, c.S3.Endpoint, c.S3.Bucket)
}

func (c S3Config) validate(key string) error {
	var errs []error
	if c.Endpoint == "" {
		errs = append(errs, fmt.Errorf("%s.endpoint: it is empty; give host or host:port", key))
	}
	if scheme, host, ok := strings.Cut(c.Endpoint, "://"); ok {
		hint := ""
		if scheme == "http" {
			hint = ", and " + key + ".insecure: true for HTTP"
		}
		errs = append(errs, fmt.Errorf("%s.endpoint: %q has a scheme; write %q%s", key, c.Endpoint, host, hint))
	}
	if c.Bucket == "" {
		errs = append(errs, fmt.Errorf("%s.bucket: it is empty; name an existing bucket", key))
	}
	if (c.AccessKey == "") != (c.SecretKey == "") {
		errs = append(errs, fmt.Errorf("%s.access_key and %s.secret_key: only one of them is set; set both or none", key, key))
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
