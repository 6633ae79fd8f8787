package rollout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/hundredfold/hundredfold/internal/cluster"
)

const (
	askTimeout = 10 * time.Second
	// maxStatus bounds the answer of /cluster; thousands of members fit.
	maxStatus = 16 << 20
)

var errAddress = errors.New("--url: it is not an address such as http://10.0.0.7:9009")

// client asks the processes at urls. Safe for concurrent use.
type client struct {
	http *http.Client
	urls []string // without a slash at the end
}

func newClient(urls []string) (*client, error) {
	c := &client{http: &http.Client{Timeout: askTimeout}}
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			// It may hold a password where none is expected, so it is not repeated.
			return nil, errAddress
		}
		c.urls = append(c.urls, strings.TrimSuffix(text, "/"))
	}
	return c, nil
}

// status returns what the first process says that answers.
func (c *client) status(ctx context.Context) (cluster.Status, error) {
	var errs []error
	for _, base := range c.urls {
		var status cluster.Status
		body, err := c.do(ctx, http.MethodGet, base+"/cluster?format=json")
		if err == nil {
			if err = json.Unmarshal(body, &status); err == nil {
				return status, nil
			}
			err = fmt.Errorf("decode the answer of %s: %w", redact(base), err)
		}
		errs = append(errs, err)
	}
	return cluster.Status{}, errors.Join(errs...)
}

// announce tells the ingester that it will be restarted.
func (c *client) announce(ctx context.Context) error {
	_, err := c.do(ctx, http.MethodPost, c.urls[0]+"/ingester/restart")
	return err
}

// ready asks the process whether it is ready.
func (c *client) ready(ctx context.Context) error {
	_, err := c.do(ctx, http.MethodGet, c.urls[0]+"/ready")
	return err
}

// do returns the body of an answer; any status but 2xx is an error.
func (c *client) do(ctx context.Context, method, address string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, address, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err // *url.Error leaves the password out
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxStatus))
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", redact(address), err)
	}
	if resp.StatusCode/100 != 2 {
		const most = 1 << 10
		text := strings.TrimSpace(string(body[:min(len(body), most)]))
		return nil, fmt.Errorf("%s answers %s: %s", redact(address), resp.Status, text)
	}
	return body, nil
}

// redact returns an address without its password.
func redact(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return "a malformed address"
	}
	return u.Redacted()
}
