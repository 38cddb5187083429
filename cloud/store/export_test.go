package store

import "context"

// Exec runs SQL that no method has.
func Exec(ctx context.Context, s *Store, query string) error {
	_, err := s.w.ExecContext(ctx, query)
	return err
}

// Pragma reads a setting of the writing connection.
func Pragma(ctx context.Context, s *Store, name string) (v string, err error) {
	err = s.w.QueryRowContext(ctx, "PRAGMA "+name).Scan(&v)
	return v, err
}
