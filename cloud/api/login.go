package api

import (
	"context"
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/zipato/vms/cloud/auth"
	"github.com/zipato/vms/pkg/vms"
)

// LoginRequest is one of its two fields.
type LoginRequest struct {
	Code  string `json:"code,omitempty" minLength:"1" maxLength:"100" doc:"A single-use login code."`
	Token string `json:"token,omitempty" minLength:"1" maxLength:"600" writeOnly:"true" doc:"The account's bearer token, for who has no code at hand."`
}

// Me is who the caller is.
type Me struct {
	Account   vms.AccountID `json:"account" example:"demo" doc:"The account."`
	Via       auth.Via      `json:"via" enum:"bearer,session" example:"session" doc:"How the caller proved it."`
	ExpiresAt *Time         `json:"expires_at,omitempty" doc:"When the session ends unless it is used; absent for a bearer token."`
}

// LoginCode opens one session.
type LoginCode struct {
	Code      string `json:"code" example:"4QX7ZT2MNB5KRC3WJ6HDPV2YEA" doc:"To be used once, at /?login=CODE or in POST /api/v1/login."`
	ExpiresAt Time   `json:"expires_at" doc:"After this it is worth nothing."`
}

type meOutput struct{ Body Me }

func (s *server) addLogin() {
	register(s, huma.Operation{
		OperationID: "login", Method: http.MethodPost, Path: "/api/v1/login", Tags: []string{tagLogin},
		Summary:     "Log a browser in",
		Description: "Trades a login code, or the bearer token, for a session cookie (`" + auth.CookieName + "`, HttpOnly, SameSite=Strict).",
		Security:    anyone,
		Middlewares: huma.Middlewares{limited(s.logins)},
		Errors:      []int{http.StatusUnauthorized, http.StatusTooManyRequests},
		RequestBody: withExample(LoginRequest{Code: "4QX7ZT2MNB5KRC3WJ6HDPV2YEA"}),
		Responses:   cookieResponse,
	}, s.login)
	register(s, huma.Operation{
		OperationID: "logout", Method: http.MethodDelete, Path: "/api/v1/login", Tags: []string{tagLogin},
		Summary:     "Log out",
		Description: "Ends the session of the cookie, if there is one, and takes the cookie back.",
		Security:    anyone,
	}, func(ctx context.Context, _ *struct{}) (*struct{}, error) {
		x := exchangeOf(ctx)
		s.Auth.Logout(x.w, x.r)
		return nil, nil
	})
	register(s, huma.Operation{
		OperationID: "me", Method: http.MethodGet, Path: "/api/v1/me", Tags: []string{tagLogin},
		Summary: "Who am I",
	}, func(ctx context.Context, _ *struct{}) (*meOutput, error) {
		return &meOutput{meOf(callerOf(ctx))}, nil
	})
	register(s, huma.Operation{
		OperationID: "create-login-code", Method: http.MethodPost, Path: "/api/v1/login-codes", Tags: []string{tagLogin},
		Summary:       "Make a login code",
		Description:   "The code logs one browser in, once, within ten minutes. It takes the bearer token: a session cannot make further sessions.",
		Middlewares:   huma.Middlewares{limited(s.codes)},
		DefaultStatus: http.StatusCreated,
		Errors:        []int{http.StatusTooManyRequests},
		Security:      []map[string][]string{{schemeBearer: {}}},
	}, s.createLoginCode)
}

// cookieResponse documents the header that auth writes.
var cookieResponse = map[string]*huma.Response{"200": {
	Description: "Logged in",
	Headers: map[string]*huma.Param{"Set-Cookie": {
		Description: "The session cookie.", Schema: &huma.Schema{Type: huma.TypeString},
	}},
}}

func (s *server) login(ctx context.Context, in *struct{ Body LoginRequest }) (*meOutput, error) {
	x := exchangeOf(ctx)
	var caller auth.Caller
	var err error
	switch {
	case (in.Body.Code == "") == (in.Body.Token == ""):
		return nil, invalid("body", "want either code or token")
	case in.Body.Code != "":
		caller, err = s.Auth.Login(x.w, x.r, in.Body.Code)
	default:
		caller, err = s.Auth.LoginWithToken(x.w, x.r, in.Body.Token)
	}
	if err != nil {
		s.Log.Warn("login refused", "client", x.r.RemoteAddr, "err", err)
		return nil, err
	}
	return &meOutput{meOf(caller)}, nil
}

func meOf(c auth.Caller) Me {
	return Me{Account: c.Account, Via: c.Via, ExpiresAt: optionalTime(c.Expires)}
}

func (s *server) createLoginCode(ctx context.Context, _ *struct{}) (*struct{ Body LoginCode }, error) {
	if callerOf(ctx).Via != auth.ViaBearer {
		return nil, fmt.Errorf("a login code is made with the bearer token: %w", vms.ErrForbidden)
	}
	code, expires := s.Auth.NewLoginCode()
	return &struct{ Body LoginCode }{LoginCode{code, Time{expires}}}, nil
}
