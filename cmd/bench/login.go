package bench

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"
)

// defaultTokenLife is that of a token that does not say (distribution's token specification).
const defaultTokenLife = time.Minute

// login answers a registry's wish to know who asks: with a password in each request, or
// with a token that is got with it and renewed when half of its life is over.
type login struct {
	user, password string
	// realm is where tokens are got, empty where none are needed. It is set before the first turn.
	realm string
	// basic sends the password with each request. It is set before the first turn.
	basic bool

	// mu is held while a token is got: the others wait for it.
	mu    sync.Mutex
	token string
	renew time.Time
}

// challenge is a parameter of WWW-Authenticate.
var challenge = regexp.MustCompile(`([a-z]+)="([^"]*)"`)

// discover asks a registry what it wants to know, for work in one repository.
func (l *login) discover(ctx context.Context, http1 *http.Client, base, repository string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/v2/", nil)
	if err != nil {
		return err
	}
	response, err := http1.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(response.Body, maxAnswerBytes)); err != nil {
		return fmt.Errorf("GET %s/v2/: %w", base, err)
	}
	wanted := response.Header.Get("WWW-Authenticate")
	scheme, rest, _ := strings.Cut(wanted, " ")
	switch {
	case response.StatusCode == http.StatusOK:
		return nil
	case response.StatusCode != http.StatusUnauthorized:
		return &statusError{method: http.MethodGet, url: base + "/v2/", status: response.StatusCode, body: "is it a registry?"}
	case strings.EqualFold(scheme, "Basic") && l.user != "":
		l.basic = true
		return nil
	case strings.EqualFold(scheme, "Bearer"):
		l.realm, err = tokenURL(rest, repository)
		return err
	}
	return fmt.Errorf("GET %s/v2/: it wants a login (%s), and no user is given", base, cmp.Or(scheme, "of no kind"))
}

// tokenURL is where the parameters of a Bearer challenge say that tokens are to be had.
func tokenURL(parameters, repository string) (string, error) {
	query, realm := url.Values{"scope": {"repository:" + repository + ":pull,push"}}, ""
	for _, pair := range challenge.FindAllStringSubmatch(parameters, -1) {
		switch pair[1] {
		case "realm":
			realm = pair[2]
		case "service":
			query.Set("service", pair[2])
		}
	}
	parsed, err := url.Parse(realm)
	if err != nil || parsed.Host == "" {
		return "", fmt.Errorf("realm %q is not a URL", realm)
	}
	parsed.RawQuery = strings.TrimPrefix(parsed.RawQuery+"&"+query.Encode(), "&")
	return parsed.String(), nil
}

// authorize adds to a request what the registry wants to know.
func (l *login) authorize(ctx context.Context, http1 *http.Client, request *http.Request) error {
	if l.basic {
		request.SetBasicAuth(l.user, l.password)
	}
	if l.realm == "" {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !time.Now().Before(l.renew) {
		if err := l.fetchToken(ctx, http1); err != nil {
			return fmt.Errorf("get token: %w", err)
		}
	}
	request.Header.Set("Authorization", "Bearer "+l.token)
	return nil
}

// fetchToken needs mu.
func (l *login) fetchToken(ctx context.Context, http1 *http.Client) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, l.realm, nil)
	if err != nil {
		return err
	}
	if l.user != "" {
		request.SetBasicAuth(l.user, l.password)
	}
	response, err := http1.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswerBytes))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return &statusError{method: http.MethodGet, url: l.realm, status: response.StatusCode, body: string(body[:min(len(body), maxFaultBytes)])}
	}
	var answer struct {
		Token       string  `json:"token"`
		AccessToken string  `json:"access_token"`
		ExpiresIn   float64 `json:"expires_in"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return fmt.Errorf("GET %s: %w", l.realm, err)
	}
	l.token = cmp.Or(answer.Token, answer.AccessToken)
	if l.token == "" {
		return fmt.Errorf("GET %s: the answer has no token", l.realm)
	}
	life := cmp.Or(time.Duration(answer.ExpiresIn*float64(time.Second)), defaultTokenLife)
	l.renew = time.Now().Add(life / 2)
	return nil
}
