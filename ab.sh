source /work/wt/bench.env; cd /tmp/w/benchc
./runc.sh & C=$!; python -m xenvirtio store serve --socket /tmp/w/benchc/ours.sock 2>/dev/null & P=$!; sleep 1.5
for i in 1 2 ; do echo C; timeout 60 python rtt.py run/socket 4000;  echo ours; timeout 60 python rtt.py ours.sock 4000; done; kill $P $C; uptime
