//! Join tokens. A secret is printed once and kept by nobody here but as a digest.

use ring::digest::{SHA256, digest};
use shoal_api::pb;
use shoal_api::status::ApiError;
use shoal_core::{Command, Outcome, view};
use shoal_types::object::NodeRole;
use shoal_types::token::{SECRET_LEN, Token};
use shoal_types::{ErrorCode, TokenId};
use tonic::Status;

use super::{describe, unexpected, vanished};
use crate::manager::{Manager, rejection};
use crate::seal;

const DEFAULT_TTL_MS: u64 = 24 * 3_600_000;

pub(super) async fn create(
    manager: &Manager,
    request: pb::CreateTokenRequest,
) -> Result<pb::TokenSecret, Status> {
    let role: NodeRole = request.role().try_into()?;
    if role == NodeRole::Manager {
        let error = ApiError::new(
            ErrorCode::InvalidField,
            "role: this release runs one manager; a token is for workers",
        );
        return Err(error.with_help("leave the role out, or give 'worker'").into());
    }
    let secret: [u8; SECRET_LEN] = seal::random().map_err(|e| Status::internal(e.to_string()))?;
    let drawn = TokenId::from_entropy(rand::random());
    let secret_sha256 = digest(&SHA256, &secret).as_ref().first_chunk().copied().unwrap_or_default();
    let command = Command::CreateToken {
        id: drawn.clone(),
        role,
        secret_sha256,
        ttl_ms: if request.ttl_ms == 0 { DEFAULT_TTL_MS } else { request.ttl_ms },
        uses: (request.uses != 0).then_some(request.uses),
    };
    let outcome = manager.write(&request.request_id, command).await?;
    let Outcome::Token { id } = outcome else { return Err(unexpected(&outcome)) };
    if id != drawn {
        let error = ApiError::new(
            ErrorCode::Internal,
            format!("token '{id}' was made by an earlier try, its secret is lost"),
        );
        return Err(error
            .with_help(format!("remove it with 'shoal swarm token rm {id}' and make a new one"))
            .into());
    }
    let seen = manager.now();
    let made = seen.state.tokens().get(&id).ok_or_else(|| vanished("token"))?;
    let token = Token { ca_digest: *manager.authority()?.digest(), id, secret };
    Ok(pb::TokenSecret {
        info: Some(describe::token(made)),
        token: token.reveal(),
        manager_addrs: manager.manager_addrs(),
    })
}

pub(super) async fn list(manager: &Manager) -> Result<pb::TokenList, Status> {
    let seen = manager.read().await?;
    Ok(pb::TokenList { tokens: seen.state.tokens().values().map(describe::token).collect() })
}

pub(super) async fn remove(manager: &Manager, request: pb::RemoveRequest) -> Result<pb::ObjectRef, Status> {
    let seen = manager.read().await?;
    let id = view::find_token(&seen.state, &request.target).map_err(rejection)?.id.clone();
    let shown = pb::ObjectRef { id: id.to_string(), name: String::new() };
    manager.write_or_preview(&request.request_id, request.dry_run, Command::RemoveToken { id }).await?;
    Ok(shown)
}
