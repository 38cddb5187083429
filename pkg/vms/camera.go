package vms

// Camera is how a camera is reached. Either URL is given, or Host and, where
// the camera does not answer on a well-known path, templates.
type Camera struct {
	// URL is rtsp:// or rtsps://, possibly with credentials.
	URL      string `json:"url,omitempty"`
	Host     string `json:"host,omitempty"`
	Port     int    `json:"port,omitempty"` // 0: 554
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`
	// Templates hold stream URLs by quality: high, mid, low, mjpeg, snapshot,
	// with {username} {password} {host} {port} to fill in.
	Templates map[string]string `json:"templates,omitempty"`
}
