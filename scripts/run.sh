#!/usr/bin/env bash
#
# Runs the notifier in the foreground. `make run` calls this with AMQP_URL and DATABASE_URL set.

set -euo pipefail

readonly BINARY=$1
address=${METRICS_ADDR:-0.0.0.0:9090}
port=${address##*:}
"$BINARY" migrate
cat <<TEXT

In another terminal:
  make listen                                                    a receiver on 127.0.0.1:8080
  make webhook-add URL=http://127.0.0.1:8080/ EVENTS='user.*'    register it
  make publish QUEUE=high_priority TYPE=user.created             publish an event to it

The status page, for a browser: http://127.0.0.1:$port/

TEXT
exec "$BINARY" run
