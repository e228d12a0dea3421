"""Draws docs/architecture.svg: PSPNet, and which of its operators are fused.

python docs/architecture.py
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 1080, 500
INK, MUTED, LINE, CARD = "#1f2733", "#5b6675", "#8792a2", "#ffffff"
STOCK, STOCK_EDGE = "#eef1f5", "#b9c2ce"
FUSED, FUSED_EDGE = "#fdeee6", "#d9622b"
LEVELS = (1, 2, 3, 6)
LEVEL_COLORS = ("#c0392b", "#d68910", "#2471a3", "#1e8449")


class Drawing:
    """SVG elements, in the order in which they are painted."""

    def __init__(self) -> None:
        self.elements: list[str] = []

    def rect(self, x: float, y: float, w: float, h: float, fill: str, edge: str, radius: float = 8, width: float = 1.3,
             dashed: bool = False) -> None:  # fmt: skip
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.elements.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{radius:g}" fill="{fill}" stroke="{edge}" '
            f'stroke-width="{width:g}"{dash}/>'
        )

    def text(self, x: float, y: float, content: str, size: float = 13, color: str = INK, anchor: str = "middle",
             bold: bool = False, mono: bool = False) -> None:  # fmt: skip
        family = "ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace" if mono else "inherit"
        weight = ' font-weight="600"' if bold else ""
        self.elements.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{color}" text-anchor="{anchor}" '
            f'font-family="{family}"{weight}>{escape(content)}</text>'
        )

    def arrow(self, *points: tuple[float, float], color: str = LINE) -> None:
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.elements.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6" stroke-linejoin="round" '
            f'marker-end="url(#tip)"/>'
        )

    def stock(self, x: float, y: float, w: float, h: float, *lines: str) -> None:
        """A module of stock operators: its name, and what it does below."""
        self.rect(x, y, w, h, STOCK, STOCK_EDGE)
        self._lines(x + w / 2, y + h / 2, lines)

    def fused(self, x: float, y: float, w: float, h: float, name: str, *lines: str) -> None:
        """A fused operator."""
        self.rect(x, y, w, h, FUSED, FUSED_EDGE, width=2)
        self.text(x + w / 2, y + 22, name, 13.5, FUSED_EDGE, bold=True, mono=True)
        for i, line in enumerate(lines):
            self.text(x + w / 2, y + 41 + 16 * i, line, 11.5)

    def _lines(self, x: float, middle: float, lines: tuple[str, ...]) -> None:
        top = middle - 8 * (len(lines) - 1) + 4.5
        for i, line in enumerate(lines):
            self.text(x, top + 16 * i, line, 13 if i == 0 else 11.5, INK if i == 0 else MUTED, bold=i == 0)

    def grid(self, x: float, y: float, side: float, cells: int, color: str) -> None:
        """A pyramid level as cells x cells squares."""
        self.rect(x, y, side, side, "#ffffff", color, 2, 1.4)
        for i in range(1, cells):
            at = side * i / cells
            self.elements.append(
                f'<path d="M{x + at:g} {y:g}v{side:g}M{x:g} {y + at:g}h{side:g}" stroke="{color}" stroke-width="0.9"/>'
            )

    def svg(self, title: str) -> str:
        body = "\n".join(self.elements)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
            "font-family=\"system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif\" role=\"img\">\n"
            f"<title>{escape(title)}</title>\n"
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0 1L9 5L0 9z" fill="{LINE}"/></marker></defs>\n'
            f"{body}\n</svg>\n"
        )


def backbone(d: Drawing) -> None:
    d.stock(30, 176, 78, 60, "image", "3 × H × W")
    d.arrow((108, 206), (128, 206))
    d.stock(128, 166, 118, 80, "ResNet", "layer0 … layer3", "output stride 8")
    d.arrow((246, 206), (268, 206))
    d.stock(268, 166, 82, 80, "layer4", "x: 2048", "× H/8 × W/8")
    # To the pyramid, past it, and down to the auxiliary head.
    d.arrow((350, 192), (372, 192), (372, 106), (392, 106))
    d.arrow((350, 220), (372, 220), (372, 258), (660, 258), (660, 230))
    d.arrow((187, 246), (187, 380), (268, 380))


def pyramid(d: Drawing) -> None:
    d.fused(392, 58, 142, 96, "pyramid_pool", "every level from", "one pass over x,", "one write backward")
    d.arrow((534, 106), (556, 106))
    d.rect(556, 58, 208, 96, STOCK, STOCK_EDGE)
    for i, (bins, color) in enumerate(zip(LEVELS, LEVEL_COLORS, strict=True)):
        d.grid(570 + 48 * i, 72, 36, bins, color)
        d.text(588 + 48 * i, 123, f"{bins} × {bins}", 11, color, bold=True)
    d.text(660, 143, "each: 1×1 conv, BN, ReLU → 512", 11.5, MUTED)
    d.arrow((660, 154), (660, 172))


def main_head(d: Drawing) -> None:
    d.fused(556, 172, 208, 58, "pyramid_conv", "3×3 conv of x and all levels → 512")
    d.rect(534, 272, 252, 48, CARD, STOCK_EDGE, dashed=True)
    d.text(660, 292, "never built: upsampled levels and", 11, MUTED)
    d.text(660, 308, "their concatenation, 4096 × H/8 × W/8", 11, MUTED)
    d.arrow((764, 201), (790, 201))
    d.stock(790, 166, 140, 70, "cls", "BN, ReLU, dropout,", "1×1 conv → classes")


def aux_head(d: Drawing) -> None:
    d.stock(268, 350, 190, 60, "aux", "3×3 conv → 256, BN, ReLU,", "dropout, 1×1 conv")
    d.arrow((458, 380), (790, 380))
    d.text(624, 371, "auxiliary logits, classes × H/8 × W/8", 11, MUTED)


def losses(d: Drawing) -> None:
    d.arrow((860, 166), (860, 130))
    d.fused(
        790, 58, 260, 72, "upsample_argmax", "labels from low-resolution logits", "for training, validation, prediction"
    )
    d.arrow((860, 236), (860, 344))
    d.text(869, 262, "main logits,", 11, MUTED, anchor="start")
    d.text(869, 277, "classes × H/8 × W/8", 11, MUTED, anchor="start")
    d.rect(880, 290, 170, 40, CARD, STOCK_EDGE, dashed=True)
    d.text(965, 307, "never built: full-resolution", 11, MUTED)
    d.text(965, 322, "logits, classes × H × W", 11, MUTED)
    scored = ("both heads upsampled ×8 and scored", "against the labels, pixel by pixel:", "L = L_main + λ · L_aux")
    d.fused(790, 344, 260, 88, "dual_cross_entropy", *scored)
    d.stock(662, 400, 100, 30, "labels")
    d.arrow((762, 415), (790, 415))


def legend(d: Drawing) -> None:
    d.rect(30, 455, 22, 15, FUSED, FUSED_EDGE, 3, 2)
    d.text(60, 467, "fused operator of this package", 12, anchor="start")
    d.rect(262, 455, 22, 15, STOCK, STOCK_EDGE, 3)
    d.text(292, 467, "stock PyTorch modules, with semseg's names and weights", 12, anchor="start")
    d.rect(668, 455, 22, 15, CARD, STOCK_EDGE, 3, dashed=True)
    d.text(698, 467, "what the fused operators make unnecessary", 12, anchor="start")


def draw() -> str:
    """The figure as SVG, on a card of its own, so that it reads on dark pages too."""
    d = Drawing()
    d.rect(1, 1, WIDTH - 2, HEIGHT - 2, CARD, "#d5dbe3", 14)
    d.text(30, 36, "PSPNet, channels as with ResNet-50", 15, anchor="start", bold=True)
    for part in (backbone, pyramid, main_head, aux_head, losses, legend):
        part(d)
    return d.svg(
        "PSPNet: where pyramid_pool, pyramid_conv, dual_cross_entropy and upsample_argmax replace stock operators"
    )


if __name__ == "__main__":
    Path(__file__).with_name("architecture.svg").write_text(draw(), encoding="utf-8")
