"""Draws docs/idea.svg, the picture of the idea: the box around W in two of its many directions.

python docs/idea.py
"""

import random
from pathlib import Path

WIDTH, HEIGHT, SIDE = 720, 452, 190  # of the picture; of the box
CHIPS = 70  # sampled

STYLE = """
  .card { fill: #ffffff; stroke: #d0d7de } .right { fill: #ddf4e4 } .wrong { fill: #ffdcd7 }
  text { font: 20px system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #1f2328 }
  .title { font-weight: 600; font-size: 22px } .soft { fill: #57606a; font-size: 18px }
  .middle { text-anchor: middle }
  .box { fill: none; stroke: #1f2328; stroke-width: 2.5 } .chip { fill: #0969da; fill-opacity: .55 }
  .path { fill: none; stroke: #b42318; stroke-width: 2.5; stroke-dasharray: 6 4 } .found { fill: #b42318 }
  .programmed { fill: #1f2328 }
  @media (prefers-color-scheme: dark) {
    .card { fill: #0d1117; stroke: #3d444d } .right { fill: #12351f } .wrong { fill: #4a1d1a }
    text { fill: #f0f6fc } .soft { fill: #9da7b3 } .box { stroke: #f0f6fc } .chip { fill: #58a6ff }
    .path { stroke: #ff8e85 } .found { fill: #ff8e85 } .programmed { fill: #f0f6fc }
  }
"""


def panel(x: float, title: str, numbers: str, boundary: str, path: list[tuple[float, float]], seed: int) -> str:
    """One network, in a square of 304 by 264 whose middle is W.

    Args:
        x: of its left edge.
        title: above it.
        numbers: below it.
        boundary: of the region of wrong answers, an SVG path from W in units of half the box.
        path: of the attack, the same units; it ends at the chip that it found.
        seed: draws the sampled chips.
    """
    draw = random.Random(seed)
    cx, cy, half = x + 144, 200, SIDE / 2
    chips = []
    while len(chips) < CHIPS:
        a, b = draw.gauss(0, 0.3), draw.gauss(0, 0.3)
        if max(abs(a), abs(b)) < 0.95:
            chips.append(f'<circle class="chip" cx="{cx + half * a:.1f}" cy="{cy + half * b:.1f}" r="3.4"/>')
    points = " ".join(f"{cx + half * a:.1f},{cy + half * b:.1f}" for a, b in path)
    end = cx + half * path[-1][0], cy + half * path[-1][1]
    inside = f'<clipPath id="in{seed}"><rect x="{x}" y="56" width="304" height="264" rx="6"/></clipPath>'
    return f"""
  <text class="title middle" x="{x + 152}" y="40">{title}</text>
  {inside}
  <g clip-path="url(#in{seed})">
    <rect class="right" x="{x}" y="56" width="304" height="264"/>
    <path class="wrong" transform="translate({cx} {cy}) scale({half})" d="{boundary}"/>
  </g>
  <rect class="box" x="{cx - half}" y="{cy - half}" width="{SIDE}" height="{SIDE}"/>
  {"".join(chips)}
  <polyline class="path" points="{points}"/>
  <circle class="programmed" cx="{cx}" cy="{cy}" r="6"/>
  <circle class="found" cx="{end[0]:.1f}" cy="{end[1]:.1f}" r="8"/>
  <text class="soft" x="{x + 10}" y="80">right</text>
  <text class="soft" x="{x + 294}" y="80" text-anchor="end">wrong</text>
  <text class="middle" x="{x + 152}" y="350">{numbers}</text>"""


def picture() -> str:
    climb = [(0, 0), (0.12, -0.3), (0.4, -0.42), (0.6, -0.74), (0.86, -0.8), (1, -1)]
    regular = panel(
        36,
        "regular training",
        "clean 98.98 %, found 0.17 %",
        "M0.25,-3 C0.35,-1.1 0.6,-0.6 1.1,-0.42 L3,0 V-3 Z",
        climb,
        seed=1,
    )
    hardened = panel(
        380,
        "trained to hold",
        "clean 98.53 %, found 96.18 %",
        "M0.98,-3 C1,-1.5 1.15,-1.12 3,-0.9 V-3 Z",
        climb,
        seed=2,
    )
    legend = """
  <circle class="programmed" cx="96" cy="388" r="6"/>
  <text class="soft" x="113" y="394">as programmed</text>
  <circle class="chip" cx="396" cy="388" r="5"/>
  <text class="soft" x="413" y="394">sampled chips</text>
  <rect class="box" x="89" y="411" width="14" height="14"/>
  <text class="soft" x="113" y="424">what write-verify passes</text>
  <circle class="found" cx="396" cy="418" r="7"/>
  <text class="soft" x="413" y="424">chip that the attack found</text>"""
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"
  aria-label="Sampled chips lie in the middle of the box; the attack finds a corner where the answers are wrong.">
  <style>{STYLE}  </style>
  <rect class="card" x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="10"/>{regular}{hardened}{legend}
</svg>
"""


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(picture())
