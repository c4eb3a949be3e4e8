"""The article beside the course: every row names tests that are there, every name that it says is here is here."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "article.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
LISTS = ("Left out", "Errata of the article")
ROWS = [
    line.strip("|").split("|")
    for name, section in SECTIONS.items()
    if name not in LISTS
    for line in section.splitlines()
    if line.startswith("|") and not re.match(r"\| (the article|---)", line)
]
FILES = sorted((ROOT / "sd_teach").rglob("*.py"))
WORD = r"--[a-z-]+|[A-Za-z_]\w+"
WORDS = {path.stem for path in FILES} | {word for path in FILES for word in re.findall(WORD, path.read_text())}

# what the article shows, in its order
SHOWN = """
create_model load_state_dict strict=False input_shape num_samples ddim_steps seed_everything eta a_prompt n_prompt scale
save_path astype no_grad get_learned_conditioning decode_first_stage
FrozenCLIPEmbedder version max_length freeze layer="last" layer="pooled" layer="hidden" layer_idx encode truncation
randn x_T mask x0 q_sample p_sample_ddim use_original_steps quantize_denoised temperature noise_dropout score_corrector
corrector_kwargs unconditional_guidance_scale unconditional_conditioning callback img_callback log_every_t intermediates
verbose alphas_cumprod ddim_alphas_prev ddim_sqrt_one_minus_alphas ddim_sigmas repeat_noise
apply_model DiffusionWrapper crossattn concat hybrid adm hybrid-adm crossattn-adm sequential_crossattn
image_size in_channels model_channels out_channels num_res_blocks attention_resolutions dropout channel_mult
conv_resample dims num_classes use_checkpoint use_fp16 num_heads num_head_channels num_heads_upsample
use_scale_shift_norm resblock_updown use_new_attention_order use_spatial_transformer transformer_depth context_dim
n_embed legacy
timestep_embedding time_embed label_emb TimestepEmbedSequential ResBlock SpatialTransformer AttentionBlock Downsample
Upsample zero_module id_predictor convert_to_fp16 convert_to_fp32 hs.pop predict_cids force_not_quantize scale_factor
split_input_params VQModelInterface
""".split()


def test_the_page_has_its_tables():
    assert len(ROWS) > 70 and all(len(row) == 4 for row in ROWS)
    assert set(LISTS) < SECTIONS.keys()


@pytest.mark.parametrize("name", SHOWN)
def test_everything_that_the_article_shows_has_a_row(name):
    first_columns = [row[0] for row in ROWS] + [
        line.split("|")[1] for line in SECTIONS["Left out"].splitlines() if "|" in line
    ]
    assert any(name in column for column in first_columns)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: re.sub(r"\W+", " ", row[0]).strip())
def test_every_row_names_tests_that_are_there(row):
    tests = re.findall(r"\[`(test_\w+)`\]\((tests/[\w/]+\.py)\)", row[3])
    assert tests and row[3].count("`") == 2 * len(tests)
    missing = [name for name, path in tests if f"\ndef {name}(" not in (ROOT / path).read_text()]
    assert not missing


@pytest.mark.parametrize("row", ROWS, ids=lambda row: re.sub(r"\W+", " ", row[0]).strip())
def test_every_name_in_the_column_here_is_in_the_code(row):
    codes = [code for code in re.findall(r"`([^`]+)`", row[1]) if not code.startswith("noise=")]  # recipes are tested
    assert not [word for code in codes for word in re.findall(WORD, code) if word not in WORDS | {"py"}]


def test_everything_left_out_has_a_reason():
    rows = [line.strip("|").split("|") for line in SECTIONS["Left out"].splitlines() if line.startswith("| `")]
    assert len(rows) >= 7 and all(len(row) == 2 and row[1].strip() for row in rows)
