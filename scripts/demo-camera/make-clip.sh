#!/bin/sh
# Makes demo.ts, the clip that the demo camera loops. It needs ffmpeg with x264
# and the DejaVu fonts; the result is committed, so nobody else needs them.
#
# 24 s are 600 pictures at 25 a second, 12 GOPs of 2 s, and exactly 1125 AAC
# access units at 48 kHz: the loop has no seam in picture or sound. The clock
# that is burnt in is the clip's, so it starts over with each loop.
# Like most cameras it has no B-frames.
set -eu
cd "$(dirname "$0")"
sans=/usr/share/fonts/truetype/dejavu/DejaVuSans-Bold.ttf
mono=/usr/share/fonts/truetype/dejavu/DejaVuSansMono-Bold.ttf
ffmpeg -hide_banner -loglevel warning -nostdin -y \
	-f lavfi -i "testsrc2=size=640x360:rate=25:duration=24" \
	-f lavfi -i "sine=frequency=330:beep_factor=3:sample_rate=48000:duration=24,volume=0.3" \
	-vf "boxblur=1,\
drawbox=x=0:y=0:w=iw:h=44:color=black@0.75:t=fill,\
drawtext=fontfile=$sans:text='VMS demo camera':x=(w-tw)/2:y=10:fontsize=26:fontcolor=white,\
drawbox=x=0:y=ih-96:w=iw:h=96:color=black@0.75:t=fill,\
drawtext=fontfile=$mono:timecode='00\:00\:00\:00':rate=25:x=(w-tw)/2:y=h-78:fontsize=60:fontcolor=yellow" \
	-c:v libx264 -profile:v high -preset veryslow -pix_fmt yuv420p -threads 2 \
	-b:v 370k -maxrate 460k -bufsize 1000k \
	-x264-params "keyint=50:min-keyint=50:scenecut=0:open-gop=0:bframes=0" -flags:v +bitexact \
	-c:a aac -ac 1 -b:a 48k -flags:a +bitexact \
	-fflags +bitexact -muxdelay 0 -muxpreload 0 -f mpegts demo.ts
ls -l demo.ts
