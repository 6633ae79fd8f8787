package tenant

import (
	"net/http"
)

// Header carries the tenant of a request when multi-tenancy is on.
const Header = "X-Scope-OrgID"

// Middleware puts the tenant of each request into its context. With multi, the
// tenant is what Header says, and a request without a valid one is answered by
// refuse; without multi it is Default, whatever the header says.
func Middleware(multi bool, refuse func(http.ResponseWriter, *http.Request, error), next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := Default
		if multi {
			header := r.Header.Get(Header)
			if header == "" {
				refuse(w, r, ErrNoTenant)
				return
			}
			parsed, err := Parse(header)
			if err != nil {
				refuse(w, r, err)
				return
			}
			id = parsed
		}
		next.ServeHTTP(w, r.WithContext(NewContext(r.Context(), id)))
	})
}
