"""Where an account is and how to reach it: ring, routing table, dispatch; and the router."""
