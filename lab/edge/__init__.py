"""An emulated Cloudflare: the API, the edge that visitors reach, Access before it, and the tunnel behind it.

Only the hosted service is emulated; what is asked of it is asked by Cloudflare's own library and by plain requests.
"""

ADDRESS = "198.51.100.1"  # of the documentation's TEST-NET-2: an Internet that is nobody's
NETWORK = f"{ADDRESS}/24"
VISITORS_ADDRESS, VISITORS_PORT = "198.51.100.2", 8888  # a proxy on a machine that knows this network only
PUBLIC_PORT, API_PORT, TUNNEL_PORT = 443, 8443, 7844
API_PATH = "/client/v4"
TEAM_DOMAIN = "cloudflareaccess.com"
# Names that the edge's certificate is for: those that documentation may use for itself (RFC 2606).
HOSTS = ("*.example.org", "*.example.com", "*.example.net", f"*.{TEAM_DOMAIN}")
