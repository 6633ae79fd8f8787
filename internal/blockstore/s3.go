package blockstore

import (
	"fmt"
	"log/slog"

	"github.com/thanos-io/objstore"
	"github.com/thanos-io/objstore/providers/s3"
)

// openS3 returns the bucket that cfg describes. It does not ask the server: a
// bucket that is away now may be there later, and every access says so clearly.
func openS3(cfg S3Config, logger *slog.Logger) (objstore.Bucket, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	provider := s3.DefaultConfig
	provider.Endpoint = cfg.Endpoint
	provider.Bucket = cfg.Bucket
	provider.AccessKey = cfg.AccessKey
	provider.SecretKey = string(cfg.SecretKey)
	provider.Region = cfg.Region
	provider.Insecure = cfg.Insecure
	bucket, err := s3.NewBucketWithConfig(keyvalLogger{logger}, provider, "hundredfold", nil)
	if err != nil {
		return nil, fmt.Errorf("s3 bucket %q at %q: %w", cfg.Bucket, cfg.Endpoint, err)
	}
	return bucket, nil
}

// keyvalLogger lets the provider, which logs key-value pairs, log to slog. The
// provider logs next to nothing; what it does log is of use to who debugs it.
type keyvalLogger struct{ logger *slog.Logger }

// Log implements the provider's logger.
func (l keyvalLogger) Log(keyvals ...any) error {
	l.logger.Debug("message of the S3 client", keyvals...)
	return nil
}
